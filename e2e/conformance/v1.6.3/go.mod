module github.com/ambit-mesh/ambit/e2e/conformance/v1.6.3

go 1.27.0

toolchain go1.27.4

require (
	sigs.k8s.io/gateway-api v1.6.3
	sigs.k8s.io/gateway-api/conformance v1.6.3
)
