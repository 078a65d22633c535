module github.com/ambit-mesh/ambit/e2e/conformance/h2spec

go 1.27.0

toolchain go1.27.4

require (
	github.com/ambit-mesh/ambit v0.0.0
	github.com/summerwind/h2spec v2.2.1+incompatible
	golang.org/x/net v0.62.0
)

require (
	github.com/fatih/color v1.19.0 // indirect
	github.com/mattn/go-colorable v0.1.14 // indirect
	github.com/mattn/go-isatty v0.0.20 // indirect
	golang.org/x/sys v0.49.0 // indirect
	golang.org/x/text v0.43.0 // indirect
)

replace github.com/ambit-mesh/ambit => ../../..
