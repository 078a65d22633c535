package token

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/internal/jwt"
	"github.com/ambit-mesh/ambit/internal/jwt/jwttest"
	"github.com/ambit-mesh/ambit/waypoint/http1"
	"github.com/ambit-mesh/ambit/waypoint/request"
)

func noKeys(_ jwt.Source, _ *jwt.Keys) (*jwt.Keys, error) { return nil, errors.New("nobody has keys") }

func parse(t testing.TB, rules ...*mesh.TokenRule) *Authentication {
	t.Helper()
	a, err := Parse(&mesh.RequestAuthentication{Namespace: "shop", Name: "tokens", Rules: rules})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func asked(t testing.TB, target string, fields ...http1.Field) *request.Request {
	t.Helper()
	r, err := request.Read("GET", "cart", target, fields)
	if err != nil {
		t.Fatal(err)
	}
	return &r
}

func field(name, value string) http1.Field { return http1.Field{Name: name, Value: value} }

// rule looks everywhere that one can look.
func rule(i *jwttest.Issuer, t testing.TB) *mesh.TokenRule {
	return &mesh.TokenRule{
		Issuer: i.Name, Keys: &mesh.TokenRule_Jwks{Jwks: jwttest.Keys(t, i)},
		FromHeaders: []*mesh.TokenRule_Header{{Name: "authorization", Prefix: "Bearer "}, {Name: "x-token"}, {Name: "x-token", Prefix: "JWT:"}},
		FromParams:  []string{"token"}, FromCookies: []string{"session"},
	}
}

func TestFind(t *testing.T) {
	a := []*Authentication{parse(t, rule(jwttest.New(t, "me", "1"), t))}
	for name, c := range map[string]struct {
		r     *request.Request
		want  string
		place string
	}{
		"nothing":                 {asked(t, "/"), "", ""},
		"behind Bearer":           {asked(t, "/", field("authorization", "Bearer a.b.c")), "a.b.c", "header authorization"},
		"another case, spaces":    {asked(t, "/", field("authorization", "bEARER \t a.b.c ")), "a.b.c", "header authorization"},
		"a tab":                   {asked(t, "/", field("authorization", "Bearer\ta.b.c")), "a.b.c", "header authorization"},
		"of another scheme":       {asked(t, "/", field("authorization", "Basic YTpi")), "", ""},
		"a longer scheme":         {asked(t, "/", field("authorization", "BearerX a.b.c")), "", ""},
		"nothing behind it":       {asked(t, "/", field("authorization", "Bearer")), "-", "header authorization"},
		"no prefix":               {asked(t, "/", field("x-token", "a.b.c")), "a.b.c", "header x-token"},
		"the longer prefix":       {asked(t, "/", field("x-token", "JWT:a.b.c")), "a.b.c", "header x-token"},
		"parameter":               {asked(t, "/?a=1&token=a.b.c&b"), "a.b.c", "parameter token"},
		"parameter, encoded":      {asked(t, "/?%74oken=a%2Eb.c"), "a.b.c", "parameter token"},
		"cookie":                  {asked(t, "/", field("cookie", `a=1; session=a.b.c;b="2"`)), "a.b.c", "cookie session"},
		"cookie in quotes":        {asked(t, "/", field("cookie", "a=1"), field("cookie", `session="a.b.c"`)), "a.b.c", "cookie session"},
		"two places":              {asked(t, "/?token=a.b.c", field("authorization", "Bearer a.b.c")), "!", ""},
		"two headers":             {asked(t, "/", field("authorization", "Bearer a.b.c"), field("x-token", "a.b.c")), "!", ""},
		"twice":                   {asked(t, "/", field("authorization", "Bearer a.b.c"), field("authorization", "Bearer a.b.c")), "!", ""},
		"beside something else":   {asked(t, "/", field("authorization", "Basic x"), field("authorization", "Bearer a.b.c")), "!", ""},
		"two parameters":          {asked(t, "/?token=a&token=b"), "!", ""},
		"two parameters, encoded": {asked(t, "/?token=a&%74oken=b"), "!", ""},
		"two cookies":             {asked(t, "/", field("cookie", "session=a; session=b")), "!", ""},
		"cookie and parameter":    {asked(t, "/?token=", field("cookie", "session=")), "!", ""},
		"a list is one value":     {asked(t, "/", field("authorization", "Bearer a.b.c, Bearer d.e.f")), "a.b.c, Bearer d.e.f", "header authorization"},
	} {
		found, err := Find(c.r, a)
		got, place := "", ""
		switch {
		case err != nil:
			got = "!"
		case found != nil && found.text == "":
			got, place = "-", found.place.String()
		case found != nil:
			got, place = found.text, found.place.String()
		}
		if got != c.want || place != c.place {
			t.Errorf("%s: %q in %q, want %q in %q (%v)", name, got, place, c.want, c.place, err)
		}
	}
}

// Rules that say no places look where everybody does.
func TestUsualPlaces(t *testing.T) {
	i := jwttest.New(t, "me", "1")
	a := []*Authentication{parse(t, &mesh.TokenRule{Issuer: "me", Keys: &mesh.TokenRule_Jwks{Jwks: jwttest.Keys(t, i)}})}
	for _, r := range []*request.Request{asked(t, "/?access_token=x"), asked(t, "/", field("authorization", "Bearer x"))} {
		if found, err := Find(r, a); err != nil || found == nil || found.text != "x" {
			t.Errorf("%+v: %+v, %v", r, found, err)
		}
	}
}

// prove is what becomes of a request.
func prove(r *request.Request, keys Keys, all ...*Authentication) (*Proof, error) {
	found, err := Find(r, all)
	if err != nil || found == nil {
		return nil, errors.Join(err, errors.New("no token"))
	}
	return found.Prove(all, keys, time.Now())
}

func TestProve(t *testing.T) {
	me, you, forger := jwttest.New(t, "me", "1"), jwttest.New(t, "you", "1"), jwttest.New(t, "me", "1")
	inHeader := rule(me, t)
	inHeader.FromParams, inHeader.FromCookies, inHeader.Audiences = nil, nil, []string{"cart"}
	inParam := rule(you, t)
	inParam.FromHeaders = nil
	a := parse(t, inHeader, inParam)
	for name, c := range map[string]struct {
		r    *request.Request
		says string
	}{
		"good":                 {asked(t, "/", field("x-token", me.Token(map[string]any{"aud": "cart"}))), ""},
		"good, the other":      {asked(t, "/?token="+you.Token(nil)), ""},
		"where it must not be": {asked(t, "/?token="+me.Token(map[string]any{"aud": "cart"})), "no rule takes"},
		"for others":           {asked(t, "/", field("x-token", me.Token(map[string]any{"aud": "other"}))), "not for here"},
		"expired":              {asked(t, "/?token="+you.Token(map[string]any{"exp": 1})), "expired"},
		"forged":               {asked(t, "/", field("x-token", forger.Token(map[string]any{"aud": "cart"}))), "signature"},
		"of nobody":            {asked(t, "/?token="+jwttest.New(t, "they", "1").Token(nil)), "no rule takes"},
		"without an issuer":    {asked(t, "/?token="+you.Token(map[string]any{"iss": nil})), "no rule takes"},
		"empty":                {asked(t, "/?token"), "no token"},
	} {
		p, err := prove(c.r, noKeys, a)
		switch {
		case c.says == "" && (err != nil || !slices.Equal(p.By, []string{"shop/tokens"}) || p.Claims.Subject != "you"):
			t.Errorf("%s: %+v, %v", name, p, err)
		case c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)):
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
}

// Who verified a token is known: those that did not are not in the list.
func TestProofNamesWhoVerifiedIt(t *testing.T) {
	me, forger := jwttest.New(t, "me", "1"), jwttest.New(t, "me", "1")
	a, b := parse(t, rule(me, t)), parse(t, rule(forger, t))
	b.Name = "other/forged"
	p, err := prove(asked(t, "/?token="+forger.Token(nil)), noKeys, a, b)
	if err != nil || !slices.Equal(p.By, []string{"other/forged"}) {
		t.Errorf("%+v, %v", p, err)
	}
}

// A proof holds as long as its rule does, and not by the clock.
func TestHolds(t *testing.T) {
	me, other := jwttest.New(t, "me", "1"), jwttest.New(t, "me", "1")
	a := parse(t, rule(me, t))
	p, err := prove(asked(t, "/?token="+me.Token(nil)), noKeys, a)
	if err != nil {
		t.Fatal(err)
	}
	p.began = time.Now().Add(-2 * time.Hour)
	same, changed, closed := parse(t, rule(me, t)), parse(t, rule(other, t)), parse(t, rule(me, t))
	closed.Closed = true
	if !p.Holds(a, noKeys) || !p.Holds(same, noKeys) {
		t.Error("it holds no more, though nothing changed")
	}
	if p.Holds(changed, noKeys) || p.Holds(closed, noKeys) {
		t.Error("it holds, though its keys are others")
	}
}

// Keys of a URI are asked for once, and once more for a key that is not among them.
func TestLackingKeysAreAskedForOnce(t *testing.T) {
	old, next := jwttest.New(t, "me", "1"), jwttest.New(t, "me", "2")
	first, err := jwt.ParseKeys([]byte(jwttest.Keys(t, old)))
	if err != nil {
		t.Fatal(err)
	}
	second, err := jwt.ParseKeys([]byte(jwttest.Keys(t, old, next)))
	if err != nil {
		t.Fatal(err)
	}
	r := &mesh.TokenRule{Issuer: "me", Keys: &mesh.TokenRule_JwksUri{JwksUri: "https://me"}, FromParams: []string{"token"}}
	var calls []string
	keys := func(later *jwt.Keys) Keys {
		return func(from jwt.Source, lacking *jwt.Keys) (*jwt.Keys, error) {
			calls = append(calls, fmt.Sprintf("%s %t", from.URI, lacking != nil))
			if lacking == nil {
				return first, nil
			}
			return later, nil
		}
	}
	if _, err := prove(asked(t, "/?token="+next.Token(nil)), keys(second), parse(t, r)); err != nil || len(calls) != 2 {
		t.Errorf("%v, %v", calls, err)
	}
	calls = nil
	if _, err := prove(asked(t, "/?token="+next.Token(nil)), keys(first), parse(t, r)); !errors.Is(err, jwt.ErrKeyUnknown) || len(calls) != 2 {
		t.Errorf("%v, %v", calls, err)
	}
	calls = nil
	if _, err := prove(asked(t, "/?token="+old.Token(nil)), keys(second), parse(t, r)); err != nil || len(calls) != 1 {
		t.Errorf("%v, %v", calls, err)
	}
	calls = nil
	if _, err := prove(asked(t, "/?token="+old.Token(map[string]any{"exp": 1})), keys(second), parse(t, r)); err == nil || len(calls) != 0 {
		t.Errorf("keys are fetched for a token that is expired: %v, %v", calls, err)
	}
}

// What is not understood takes no tokens, and takes the others with it only if nobody
// knows what it is about.
func TestWhatIsNotUnderstoodTakesNoTokens(t *testing.T) {
	me := jwttest.New(t, "me", "1")
	good := asked(t, "/?token="+me.Token(nil))
	unknown := rule(me, t)
	unknown.ProtoReflect().SetUnknown([]byte{0x98, 0x06, 0x01})
	for name, change := range map[string]func(*mesh.TokenRule) *mesh.TokenRule{
		"as it was":     func(r *mesh.TokenRule) *mesh.TokenRule { return r },
		"unknown field": func(*mesh.TokenRule) *mesh.TokenRule { return unknown },
		"invalid":       func(r *mesh.TokenRule) *mesh.TokenRule { r.Invalid = "so"; return r },
		"no keys":       func(r *mesh.TokenRule) *mesh.TokenRule { r.Keys = nil; return r },
		"bad keys":      func(r *mesh.TokenRule) *mesh.TokenRule { r.Keys = &mesh.TokenRule_Jwks{Jwks: "{}"}; return r },
		"bad authority": func(r *mesh.TokenRule) *mesh.TokenRule {
			r.Keys, r.CertificateAuthority = &mesh.TokenRule_JwksUri{JwksUri: "https://me"}, "nonsense"
			return r
		},
		"bad algorithm": func(r *mesh.TokenRule) *mesh.TokenRule { r.Algorithms = []string{"ES256", "none"}; return r },
		"bad header":    func(r *mesh.TokenRule) *mesh.TokenRule { r.FromHeaders[0].Name = "X-Token"; return r },
		"bad claim": func(r *mesh.TokenRule) *mesh.TokenRule {
			r.ClaimHeaders = []*mesh.TokenRule_ClaimHeader{{Header: "a b"}}
			return r
		},
		"another issuer": func(r *mesh.TokenRule) *mesh.TokenRule { r.Issuer = "me/"; return r },
	} {
		a, err := Parse(&mesh.RequestAuthentication{Namespace: "shop", Name: "tokens", Rules: []*mesh.TokenRule{change(rule(me, t))}})
		_, refused := prove(good, noKeys, a)
		if isGood := name == "as it was"; (refused == nil) != isGood || (err == nil) != (isGood || name == "another issuer") || a.Closed {
			t.Errorf("%s: %v, refused: %v", name, err, refused)
		}
	}
	closed := &mesh.RequestAuthentication{Namespace: "shop", Name: "tokens"}
	closed.ProtoReflect().SetUnknown([]byte{0x98, 0x06, 0x01})
	if a, err := Parse(closed); err == nil || !a.Closed {
		t.Error("one with an unknown field is taken for what it seems")
	}
	if a, err := Parse(&mesh.RequestAuthentication{Invalid: "so"}); err == nil || !a.Closed {
		t.Error("one that is invalid is taken for what it seems")
	}
}

func TestChange(t *testing.T) {
	me := jwttest.New(t, "me", "1")
	token := me.Token(map[string]any{
		"n": 7, "f": 1.5, "b": true, "list": []string{"a"}, "lines": "a\r\nx-admin: yes", "wide": "é", "empty": "", "realm": map[string]any{"role": "admin"},
	})
	r := rule(me, t)
	for header, claim := range map[string]string{
		"x-sub": "sub", "x-n": "n", "x-f": "f", "x-b": "b", "x-list": "list", "x-lines": "lines", "x-wide": "wide", "x-empty": "empty", "x-role": "realm.role", "x-none": "realm.none.more",
	} {
		r.ClaimHeaders = append(r.ClaimHeaders, &mesh.TokenRule_ClaimHeader{Header: header, Claim: strings.Split(claim, ".")})
	}
	claims := []string{"x-b: true", "x-f: 1.5", "x-n: 7", "x-role: admin", "x-sub: you"}
	forged := []http1.Field{field("x-sub", "root"), field("x_sub", "root"), field("x-list", "root"), field("x-more", "root"), field("accept", "*/*")}
	for name, c := range map[string]struct {
		forward bool
		r       *request.Request
		query   string
		want    []string
	}{
		"without a token":   {false, asked(t, "/?a=1", forged...), "?a=1", []string{"accept: */*"}},
		"in a header":       {false, asked(t, "/?a=1", append(forged, field("authorization", "Bearer "+token))...), "?a=1", append([]string{"accept: */*"}, claims...)},
		"in a header, kept": {true, asked(t, "/", append(forged, field("authorization", "Bearer "+token))...), "", append([]string{"accept: */*", "authorization: Bearer " + token}, claims...)},
		"in a parameter":    {false, asked(t, "/?a=1&%74oken="+token+"&b=%2F", forged...), "?a=1&b=%2F", append([]string{"accept: */*"}, claims...)},
		"the only one":      {false, asked(t, "/?token="+token, forged...), "", append([]string{"accept: */*"}, claims...)},
		"in a cookie":       {false, asked(t, "/", append(forged, field("cookie", "a=1; session="+token+"; b=2"))...), "", append([]string{"accept: */*", "cookie: a=1; b=2"}, claims...)},
		"the only cookie":   {false, asked(t, "/", append(forged, field("cookie", "session="+token))...), "", append([]string{"accept: */*"}, claims...)},
		"a cookie, kept":    {true, asked(t, "/", field("cookie", "session="+token)), "", append([]string{"cookie: session=" + token}, claims...)},
	} {
		r.Forward = c.forward
		all := []*Authentication{parse(t, r)}
		before := slices.Clone(c.r.Fields)
		var proof *Proof
		if found, err := Find(c.r, all); err != nil {
			t.Fatal(err)
		} else if found != nil {
			if proof, err = found.Prove(all, noKeys, time.Now()); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		fields, query := Change(c.r, Forged(all, []string{"x-more"}), proof)
		var got []string
		for _, f := range fields {
			got = append(got, f.Name+": "+f.Value)
		}
		slices.Sort(got)
		slices.Sort(c.want)
		if !slices.Equal(got, c.want) || query != c.query {
			t.Errorf("%s: %q, %q; want %q, %q", name, got, query, c.want, c.query)
		}
		if !slices.Equal(before, c.r.Fields) {
			t.Errorf("%s: what it was made from has changed", name)
		}
	}
}

// Whatever a request looks like: once its token is taken there is none, and fields for
// claims are as the token has them or not there.
func FuzzChange(f *testing.F) {
	me := jwttest.New(f, "me", "1")
	r := rule(me, f)
	r.ClaimHeaders = []*mesh.TokenRule_ClaimHeader{{Header: "x-sub", Claim: []string{"sub"}}}
	all := []*Authentication{parse(f, r)}
	token := me.Token(nil)
	f.Add("/?token="+token, "", "")
	f.Add("/?a&token=x&%74oken", "Bearer "+token, "session="+token)
	f.Add("/", "bearer\t"+token, `a=1;;session="`+token+`";`)
	f.Fuzz(func(t *testing.T, target, authorization, cookies string) {
		for _, text := range []string{authorization, cookies} {
			if _, err := http1.ParseField("x: " + text); err != nil || strings.TrimSpace(text) != text {
				return
			}
		}
		q, err := request.Read("GET", "cart", target, []http1.Field{field("authorization", authorization), field("cookie", cookies), field("x_sub", "root")})
		if err != nil {
			return
		}
		found, err := Find(&q, all)
		if err != nil {
			return
		}
		var proof *Proof
		if found != nil {
			// As if it had been verified, whatever it is.
			good := Found{text: token, place: found.place}
			if proof, err = good.Prove(all, noKeys, time.Now()); err != nil {
				t.Fatal(err)
			}
			proof.found.text = found.text
		}
		after := q
		after.Fields, after.Query = Change(&q, Forged(all, nil), proof)
		if again, err := Find(&after, all); again != nil || err != nil {
			t.Errorf("%q %q %q: the token is still there: %+v, %v", target, authorization, cookies, again, err)
		}
		want := 0
		if proof != nil {
			want = 1
		}
		var claims int
		for _, f := range after.Fields {
			if alike(f.Name) == "x-sub" {
				if claims++; f.Value != "you" {
					t.Errorf("a claim is forged: %+v", f)
				}
			}
		}
		if claims != want {
			t.Errorf("%d fields for the claim, want %d", claims, want)
		}
		if reread, err := request.Read("GET", "cart", after.Target(), after.Fields); err != nil || reread.Query != after.Query {
			t.Errorf("what goes on is %q, which is read as %q, %v", after.Query, reread.Query, err)
		}
	})
}
