"""A twin of the Kubernetes API: the small part that agents use, with its real behaviour.

    with Twin() as twin:
        twin.state.create(node("n1", "10.244.1.0/24"))
        twin.restart()

What the real API server does and clients fail over is in it: chunked lists of one snapshot, a bounded
history and 410, bookmarks, watches that end at their time, strategic merges, fields that may not change,
tokens that end, a table of rights, `/status` that changes no spec. `OVNET_KUBE_API` has the tests that
need no fault of the twin run against a real one as well, see `tests/conformance/test_kubernetes_api.py`.
"""
