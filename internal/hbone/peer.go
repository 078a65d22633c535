package hbone

// Limit is how many streams the peer allows at once, as far as it has said.
func (c *Client) Limit() int {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	return int(min(c.s.peerStreams, maxStreamID/2))
}
