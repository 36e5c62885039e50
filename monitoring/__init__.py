"""What a cluster shows: the journal, the exporter, and the catalogue of metrics."""
