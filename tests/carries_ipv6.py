"""`ovctl` that serves networks with IPv6: `python -m tests.carries_ipv6 ...`.

The agent refuses them as long as not all of it is there. What carries packets already is tested by this.
"""

from __future__ import annotations

import sys

from ctl.core import family

if __name__ == "__main__":
    family.cannot_carry_ipv6_yet = lambda network: ""  # before anyone imports it by name
    from ctl.cli.main import main

    sys.exit(main())
