"""What is wrong with a node, judged by what was seen of it. Pure.

Each judgement takes what was seen and gives findings: what it is about, how bad it is, what was seen,
what that means, and the command that mends it. Where several have one cause, the cause is said: a peer
that answers nothing because its route is stolen is named once, by the route.
"""
