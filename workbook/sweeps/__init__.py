"""Many runs: plans and the processes or cluster jobs that work them off."""
