package spiffe

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
)

// tagURI is uniformResourceIdentifier in a GeneralName (RFC 5280 section 4.2.1.6).
const tagURI = 6

var oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// FromCertificate returns the identity in a parsed certificate's only URI name.
//
// It reads the extension's bytes and not [x509.Certificate.URIs]: parsing a URL
// drops an empty fragment and lowers the scheme's case, and an identity has one
// spelling.
func FromCertificate(cert *x509.Certificate) (ID, error) {
	uris, _, err := names(cert.Extensions)
	if err != nil {
		return ID{}, err
	}
	if len(uris) != 1 {
		return ID{}, fmt.Errorf("%w: certificate has %d URI names, exactly one is required", ErrMalformed, len(uris))
	}
	return Parse(uris[0])
}

// ErrManyNames: a signing request asks for more names than one identity.
var ErrManyNames = errors.New("more than one name")

// FromRequest returns the identity that a parsed signing request asks for: its only
// alternative name, read as [FromCertificate] does. The error is [ErrManyNames]'s if
// it asks for others besides.
func FromRequest(request *x509.CertificateRequest) (ID, error) {
	uris, others, err := names(request.Extensions)
	switch {
	case err != nil:
		return ID{}, err
	case len(uris) > 1 || others > 0:
		return ID{}, fmt.Errorf("%w: %d URIs and %d of other kinds, exactly one URI is required", ErrManyNames, len(uris), others)
	case len(uris) == 0:
		return ID{}, fmt.Errorf("%w: the request asks for no URI name, exactly one is required", ErrMalformed)
	}
	return Parse(uris[0])
}

// names returns the alternative names that are URIs, and how many others there are.
func names(extensions []pkix.Extension) (uris []string, others int, err error) {
	for _, ext := range extensions {
		if !ext.Id.Equal(oidSubjectAltName) {
			continue
		}
		var names asn1.RawValue
		rest, err := asn1.Unmarshal(ext.Value, &names)
		if err != nil || len(rest) > 0 || !names.IsCompound || names.Tag != asn1.TagSequence || names.Class != asn1.ClassUniversal {
			return nil, 0, fmt.Errorf("%w: subject alternative names are not a sequence", ErrMalformed)
		}
		for rest = names.Bytes; len(rest) > 0; {
			var name asn1.RawValue
			if rest, err = asn1.Unmarshal(rest, &name); err != nil {
				return nil, 0, fmt.Errorf("%w: subject alternative name: %w", ErrMalformed, err)
			}
			if name.Class == asn1.ClassContextSpecific && name.Tag == tagURI {
				uris = append(uris, string(name.Bytes))
			} else {
				others++
			}
		}
	}
	return uris, others, nil
}
