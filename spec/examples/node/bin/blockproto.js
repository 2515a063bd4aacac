#!/usr/bin/env node
/** The command: see README.md beside it. Exit codes: 0 done, 1 refused, 2 usage, 3 unreachable or lost. */
import {main} from '../src/command.js';

process.exitCode = await main(process.argv.slice(2));
