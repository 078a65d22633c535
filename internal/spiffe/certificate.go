package spiffe

import (
	"crypto/x509"
	"encoding/asn1"
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
	uris, err := uriNames(cert)
	if err != nil {
		return ID{}, err
	}
	if len(uris) != 1 {
		return ID{}, fmt.Errorf("%w: certificate has %d URI names, exactly one is required", ErrMalformed, len(uris))
	}
	return Parse(uris[0])
}

func uriNames(cert *x509.Certificate) ([]string, error) {
	var uris []string
	for _, ext := range cert.Extensions {
		if !ext.Id.Equal(oidSubjectAltName) {
			continue
		}
		var names asn1.RawValue
		rest, err := asn1.Unmarshal(ext.Value, &names)
		if err != nil || len(rest) > 0 || !names.IsCompound || names.Tag != asn1.TagSequence || names.Class != asn1.ClassUniversal {
			return nil, fmt.Errorf("%w: subject alternative names are not a sequence", ErrMalformed)
		}
		for rest = names.Bytes; len(rest) > 0; {
			var name asn1.RawValue
			if rest, err = asn1.Unmarshal(rest, &name); err != nil {
				return nil, fmt.Errorf("%w: subject alternative name: %w", ErrMalformed, err)
			}
			if name.Class == asn1.ClassContextSpecific && name.Tag == tagURI {
				uris = append(uris, string(name.Bytes))
			}
		}
	}
	return uris, nil
}
