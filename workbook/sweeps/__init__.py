"""Many runs: a plan in a folder, and the jobs that work it off, here or on a cluster."""
