"""Stock QUIC whose client changes its address while the server stays: RFC 9000 §9."""
