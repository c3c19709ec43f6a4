"""From samples to batches on the host: decoding, padding and prefetching."""
