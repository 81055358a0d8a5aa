"""``python -m killswitch`` is the ``killswitch`` command."""

from killswitch.cli import main

if __name__ == "__main__":
    main()
