"""Members of every role that sleep instead of computing: same methods and errors, known numbers. For tests of the
orchestrator.
"""
