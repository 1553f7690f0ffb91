"""Reads prompts: from files to rows, from rows to prompts of token ids, and the order of a mixture.

`files/` opens what a path names.

In: paths of the recipe. Out: prompts by group index, made when they are asked for, and what is wrong with the files.
Rule: nothing is read whole that may be large; a row is refused or left out by its file and number.
"""
