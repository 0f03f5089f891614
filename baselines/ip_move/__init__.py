"""What one gets with the network under one's own control: the service's address moves with the server."""
