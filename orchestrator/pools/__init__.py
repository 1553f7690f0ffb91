"""The members of each role: started, called, replaced.

Decides which member a call goes to, how long an answer may take, and what follows from a death. Input: calls. Output:
answers, or the error of the last attempt.

The rule: a pool retries single calls; work that a member streams is lost with it, and the caller submits it again.
Nothing here depends on what a call does.
"""
