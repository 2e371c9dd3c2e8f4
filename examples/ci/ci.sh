#!/bin/sh
# For any CI: the build ends here unless the gate passes (1: failed, 2: cannot be read, 3: too little data).
set -e
uphold gate gate.yml --out build/gate --junit build/gate/gate.xml --comment build/gate/comment.md
echo "may ship"
