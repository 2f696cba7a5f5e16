"""Search over millions of documents: an index on disk, a server and a client of the peers' protocol."""
