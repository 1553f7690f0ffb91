"""What the ranks of a learner do together: meet, gather whole tensors, agree if numbers are finite, fail as one."""
