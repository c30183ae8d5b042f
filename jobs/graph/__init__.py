"""The Ray side: the Ray Data graph that all jobs share, cluster checks and metrics."""
