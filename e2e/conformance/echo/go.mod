// The application of the Gateway API's mesh tests, Istio's echo: its client and
// its server are built from here, and nothing of it is ours.
module github.com/ambit-mesh/ambit/e2e/conformance/echo

go 1.27.0

toolchain go1.27.4

tool (
	istio.io/istio/pkg/test/echo/cmd/client
	istio.io/istio/pkg/test/echo/cmd/server
)

require istio.io/istio v0.0.0-20260827124520-eed52ebb66ad
