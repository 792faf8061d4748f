"""Floor 0. Every command, and `import segwright`, comes through here before torch is imported."""

import os

# Threads of OpenMP spin while they wait for each other. Beside one busy process, a training step then takes four times
# as long, since what spins takes the core from what computes. OpenMP reads this once, when torch is imported; processes
# that we start inherit it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
