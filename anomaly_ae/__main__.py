"""``python -m anomaly_ae`` is the same program as ``anomaly-ae``."""

from anomaly_ae.cli import main

if __name__ == "__main__":
    main()
