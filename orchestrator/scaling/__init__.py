"""How many members each role has in a live run.

In come the seconds that roles were busy or waited; out go the bottleneck and better sizes.

The rule: a diagnosis rests on measured steps with the current members; a change of members discards earlier readings.
"""
