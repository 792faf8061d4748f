"""Floor 0. Every command, and `import segwright`, comes through here before torch is imported."""

from utils.threads import set_waiting

set_waiting()
