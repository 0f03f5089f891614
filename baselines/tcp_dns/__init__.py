"""HTTP/1.1 over TLS 1.3 over TCP, and the name service that says where the server is."""
