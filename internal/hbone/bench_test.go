package hbone_test

import (
	"io"
	"testing"

	"github.com/ambit-mesh/ambit/internal/hbone"
)

// BenchmarkThroughput moves bytes one way, over TLS and loopback, both ends in
// this process.
func BenchmarkThroughput(b *testing.B) {
	for name, streams := range map[string]int{"1 stream": 1, "32 streams": 32} {
		b.Run(name, func(b *testing.B) {
			const piece = 256 << 10
			r := tunnel(b, hbone.Options{}, accepted(b, func(st hbone.Stream) {
				buf := make([]byte, piece)
				io.CopyBuffer(struct{ io.Writer }{io.Discard}, st, buf)
				st.CloseWrite()
			}))
			b.SetBytes(piece)
			b.ReportAllocs()
			var all counter
			todo := make(chan struct{}, streams)
			for range streams {
				st := r.open(b)
				all.run(func() error {
					defer st.Close()
					buf := make([]byte, piece)
					for range todo {
						if _, err := st.Write(buf); err != nil {
							return err
						}
					}
					st.CloseWrite()
					_, err := st.Read(buf[:1])
					if err != io.EOF {
						return err
					}
					return nil
				})
			}
			for b.Loop() {
				todo <- struct{}{}
			}
			close(todo)
			if err := all.wait(); err != nil {
				b.Fatal(err)
			}
		})
	}
}

// BenchmarkRoundTrip echoes 1 KiB, one at a time.
func BenchmarkRoundTrip(b *testing.B) {
	r := tunnel(b, hbone.Options{}, accepted(b, echo))
	st := r.open(b)
	defer st.Close()
	buf := make([]byte, 1<<10)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := st.Write(buf); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(st, buf); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkOpen opens a stream and closes it in order.
func BenchmarkOpen(b *testing.B) {
	r := tunnel(b, hbone.Options{}, accepted(b, echo))
	b.ReportAllocs()
	for b.Loop() {
		st := r.open(b)
		st.CloseWrite()
		if _, err := io.Copy(io.Discard, st); err != nil {
			b.Fatal(err)
		}
		st.Close()
	}
}
