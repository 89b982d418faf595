"""The field's load clients run against the simulated server, and count what it counted."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from servescope.engine.config import parse
from servescope.engine.tokenizer import tokenize
from servescope.serve import Server
from tests.serve.client import samples
from tests.support import official_clients
from tests.support.served import page

pytestmark = pytest.mark.peers
