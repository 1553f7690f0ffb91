"""Members of every role that sleep instead of computing: same methods and errors, known numbers.

No run uses them. They lie beside the real members because they are held to the same contract
(tests/engines/test_contract.py), and because a member engine of a user's own may be derived from one of them for a try
without models. All tests of what the orchestrator decides run on them; the benchmarks have members of their own.
"""
