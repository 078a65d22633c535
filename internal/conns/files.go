package conns

const (
	// FilesAtMost are the descriptors of a connection: two sockets, and a pipe for
	// each way while the kernel moves its bytes.
	FilesAtMost = 6
	// FilesOfStream are those of one whose other end is a stream of a tunnel, which
	// it shares with others.
	FilesOfStream = 1
)
