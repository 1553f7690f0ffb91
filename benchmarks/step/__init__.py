"""The roles of a step alone, each against what this machine can do at most. One file a role."""
