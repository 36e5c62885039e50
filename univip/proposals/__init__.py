"""Box proposals: selective search, the filters of the paper, and the shards that run them over a data set."""
