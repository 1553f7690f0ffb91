"""The members of each role: started, given calls, replaced.

Decides which member a call goes to, how long an answer may take, and what a member's death or sickness says. In come
calls; out come answers, or the error that ended every try.

The rule: what a member was asked for and has not answered is the caller's to ask for again; a pool only says that it is
lost. Nothing here knows what a call is about.
"""
