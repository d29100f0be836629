"""What runs units of work and keeps their records: the store, Ray's workers, the cluster."""
