# make demo   a primary and a standby in two containers, built from bare Debian
# make test   everything that must hold before a change is accepted
# make clean  removes what these two created
#
# Parts of them, for work on the project:
#   make venv unit integration gates molecule    make bench    make matrix    make soak

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:

export PYTHON ?= /usr/bin/python3
export PATH := $(CURDIR)/.cache/venv/bin:$(PATH)
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
export ANSIBLE_HOME := $(CURDIR)/.cache/ansible

VENV := .cache/venv/.installed
COLLECTION := .cache/collections/ansible_collections/hotspare/postgresql
SUITE ?= trixie

.PHONY: help venv lab demo test unit integration gates installed molecule molecule-zfs matrix soak bench bench-cutover bench-archive bench-zfs clean

help:
	@sed -n 's/^# \?//p' Makefile | head -n 6

venv: $(VENV) $(COLLECTION)

$(VENV): requirements-dev.txt
	lab/prerequisites python
	$(PYTHON) -m venv .cache/venv
	pip install -qq -r requirements-dev.txt
	touch $@

# The checkout is the collection: playbooks, tests and editors find it under its full name.
$(COLLECTION):
	mkdir -p $(@D)
	ln -sfn $(CURDIR) $@

lab:
	lab/prerequisites docker
	lab/image $(SUITE) >/dev/null

demo: venv lab
	lab/demo up $(SUITE)
	ansible-playbook -i inventories/demo site.yml
	ansible-playbook -i inventories/demo status.yml
	lab/demo next

test:
	lab/test

unit: venv
	pytest tests/unit

integration: venv
	lab/prerequisites postgresql
	pytest tests/integration --numprocesses auto

# The same tests on another Debian with its PostgreSQL: make integration-trixie
integration-%: venv
	lab/prerequisites docker
	lab/integration $*

gates: venv
	lab/gates

molecule: molecule-default molecule-failover molecule-three molecule-archive

# What a user installs: the tarball, not the checkout. Once for all lanes of lab/test.
installed: venv
	[ -z "$${HOTSPARE_INSTALLED:-}" ] || exit 0
	rm -rf .cache/dist .cache/installed
	ansible-galaxy collection build --output-path .cache/dist
	ansible-galaxy collection install --force --offline --no-deps --collections-path .cache/installed .cache/dist/*.tar.gz

# Machines with a kernel of their own, for OpenZFS. `make soak` runs its longer tests, too.
molecule-zfs: installed
	lab/prerequisites qemu
	lab/guest_image >/dev/null
	HOTSPARE_IMAGE=none HOTSPARE_COLLECTIONS=installed HOTSPARE_MITOGEN=$$(python -c 'import ansible_mitogen; print(*ansible_mitogen.__path__)') molecule test -s zfs

# The default scenario begins with bare Debian, the others where its packages are installed.
molecule-%: installed lab
	HOTSPARE_IMAGE=$$(lab/image $(SUITE) $(if $(filter default,$*),,stocked)) HOTSPARE_COLLECTIONS=installed molecule test -s $*

matrix: venv
	lab/matrix

# The control node dies after each single task, planned, forced and in a rebuild, and at moments that nobody chose;
# before it, examples for the properties that nobody chose either.
soak: installed lab
	pytest tests/unit -m hypothesis --hypothesis-profile search
	lab/soak
	HOTSPARE_MARKED='soak or not soak' $(MAKE) --no-print-directory molecule-zfs

bench: venv lab
	bench/run.py

# Ours beside repmgr, Patroni and pg_auto_failover, in turn; about 25 minutes on a quiet machine. ROUNDS=2 for a short one.
bench-cutover: venv
	lab/prerequisites docker
	pip install -qq -r bench/requirements.txt
	bench/cutover/run.py --output bench/results/cutover.json
	bench/cutover/plot.py bench/results/cutover.json bench/results/cutover.svg

# WAL and documents, ours beside pgBackRest, Barman and rsync; about 12 minutes. SIZE=16 ROUNDS=1 for a short one.
bench-archive: venv
	lab/prerequisites docker
	pip install -qq -r bench/requirements.txt
	bench/archive/run.py --output bench/results/archive.json
	bench/archive/plot.py bench/results/archive.json bench/results/archive.svg

# ZFS snapshots, ours beside zfs send and syncoid, and standbys made of them, in two virtual machines of its own. It wants
# a quiet machine. SIZE=16 SCALE=2 ROUNDS=1 for a short one.
bench-zfs: venv
	lab/prerequisites qemu
	lab/guest_image >/dev/null
	bench/zfs/run.py --output bench/results/zfs.json

clean:
	lab/clean
