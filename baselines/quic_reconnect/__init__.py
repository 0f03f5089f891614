"""Stock QUIC and the name service: the client notices, resolves, and makes a new connection."""
