"""The keys of each role, a file a role, and what roles have in common: sizes, kinds, deadlines."""
