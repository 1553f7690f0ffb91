"""`logratio` over simulated members: `python -m tests.cli.simulated SECONDS COMMAND...`.

SECONDS is how long rollouts sleep, a token.
"""

from __future__ import annotations

import sys

from actors.simulated.known import Speeds
from orchestrator.cli import main
from tests.unit.simulation import simulated

if __name__ == "__main__":
    main(simulated(Speeds(rollout=float(sys.argv.pop(1)))))
