package balance

import "net/netip"

// rendezvous scores an endpoint for a client. The highest score wins, so that
// all nodes agree without a table, and a client moves only if its endpoint goes.
func rendezvous(client netip.Addr, uid string) uint64 {
	// FNV-1a, 64 bits.
	const offset, prime = 0xcbf29ce484222325, 0x100000001b3
	x := uint64(offset)
	for _, b := range client.As16() {
		x = (x ^ uint64(b)) * prime
	}
	for i := range len(uid) {
		x = (x ^ uint64(uid[i])) * prime
	}
	// Its high bits hardly depend on the last bytes, and names differ in just
	// these: finish as splitmix64 does.
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
