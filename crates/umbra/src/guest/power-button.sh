#!/bin/sh
exec poweroff -f
