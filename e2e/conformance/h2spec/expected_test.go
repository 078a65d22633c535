package h2spec

// longHeaders need a block of headers beyond our frame size, of 1 MiB.
var longHeaders = []string{"http2/4.2/3", "client/4.2/3"}

// withGet are the cases that cannot pass with GET or POST. They run again as
// CONNECT.
var withGet = map[string]string{
	"generic/2/2":     noData,
	"generic/2/3":     noData,
	"http2/5.1/8":     over,
	"http2/5.1/9":     over,
	"http2/5.1.2/1":   over,
	"http2/6.5.3/1":   noData,
	"http2/6.9/2":     over,
	"http2/6.9.1/1":   noData,
	"http2/6.9.1/3":   over,
	"http2/6.9.2/1":   noData,
	"http2/6.9.2/2":   noData,
	"http2/8.1/1":     over,
	"http2/8.1.2.1/3": over,
	"http2/8.1.2.6/1": over,
	"http2/8.1.2.6/2": over,
}

const (
	noData = "waits for DATA in answer to GET: there is none in a 400"
	over   = "goes on with a request that was answered 400 at once, and is over"
)

// unfit are the cases that do not fit this server, or RFC 9113.
var unfit = map[string]string{
	"http2/5.3.1/2":   "stream dependencies: RFC 9113 section 5.3.2 has none",
	"http2/8.1.2.6/1": noContent,
	"http2/8.1.2.6/2": noContent,
}

const noContent = "content-length: what a CONNECT carries is no content (RFC 9110 section 9.3.6)"

// unfitClient are the cases that do not fit our client, or RFC 9113.
var unfitClient = map[string]string{
	"client/4.2/2": "sends 16 KiB and a byte: the suite does not know that we allow 1 MiB",
	"client/5.1/8": halfClosed,
	"client/5.1/9": halfClosed,
}

const halfClosed = "holds the stream for closed: a CONNECT is not ended, so it is half closed, and RFC 9113 section 5.1 wants an error of the stream"
