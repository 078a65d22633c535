// Package quota bounds what one party may hold of something that all share.
//
//	counter.go  Counter: each key so many, and no more
//	door.go     Door: so many at a time in all; who crowds it makes room for others
//	shares.go   Shares: a capacity that is free for all while there is enough of
//	            it, and is divided once it gets scarce
//	listener.go Listener: connections by client address
//
// Invariants: nothing here waits, so no party can make another one wait; memory
// is bounded by what is held, and a key that holds nothing is forgotten.
//
// What is refused, and how that is told, is the caller's business.
package quota
