"""One file per DVC stage, in the order of the road: ingest validate split shard train register evaluate report."""
