import sys

from groqchat.cli import main

if __name__ == "__main__":
    sys.exit(main())
