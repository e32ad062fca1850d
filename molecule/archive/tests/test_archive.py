# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""WAL and documents of a pair, one story: what goes wrong on the way to the archives is caught up by itself, a standby
and a new server live from the archive alone, and roles swap.
"""

from __future__ import annotations

import json
import os
import re
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from pathlib import Path

from ledger import Watch, assert_pair, both_writable, ledger, missing

README = Path(__file__).parents[3] / "README.md"
DOCUMENTS = int(os.environ.get("HOTSPARE_DOCUMENTS", "3000"))
TODAY, AFTER, NIGHT, *BEFORE = (f"{date.today() - timedelta(days=days):%Y/%m/%d}" for days in range(28))


def checked(lab):
    """What archive_check.yml finds: the record of each place, and the tables that it shows."""
    output = lab.play("archive_check", "-e", "format=json").output
    found = json.JSONDecoder().raw_decode(output, output.index("{", output.index('"_found":')))[0]
    return {place["name"]: place for place in found["archive"]["places"]}, found


def test_the_archives_fill_and_say_so(lab, archives):
    one, two = lab.roles()
    names = archives.write(one, 3)
    archives.wait_for_all(one, two, lab.store)
    assert set(names) <= archives.held(lab.store)
    assert {place["state"] for place in archives.shipping(one).values()} == {"connected"}
    table = lab.play("archive_check").output
    assert lab.store in table and "GAPS" not in table
    assert f"{one} ships WAL to" in lab.play("status").output
    # Nobody but the server writes where WAL is archived, and on a node only its account reads it.
    assert lab.run(two, "stat", "-c", "%U %a", archives.directory(two)) == "postgres 750\n"
    assert lab.run(lab.store, "stat", "-c", "%U %a", archives.directory(lab.store)) == "hotspare 750\n"


def test_the_keys_open_nothing_else(lab):
    key = "/etc/hotspare/ssh/main-postgres"
    known = f"UserKnownHostsFile={key}/known_hosts"
    ssh = ("ssh", "-F", "none", "-o", "BatchMode=yes", "-o", known, "-i", f"{key}/id_ed25519")
    for login in (f"hotspare@{lab.store_address}", f"postgres@{lab.addresses[lab.two]}"):
        said = lab.docker("exec", "-u", "postgres", lab.one, *ssh, login, "cat /etc/passwd; id", check=False)
        assert "root:" not in said and "uid=" not in said
        forwarded = lab.docker("exec", "-u", "postgres", lab.one, *ssh, "-W", "127.0.0.1:22", login, check=False)
        assert "SSH-2.0" not in forwarded


def test_an_inventory_that_cannot_be_meant(lab):
    before = lab.fingerprints()
    scans = {"name": "scans", "path": "/srv/scans", "account": "scans"}
    inside = {"name": "inside", "path": "/srv/scans/inside", "account": "nobody-here"}
    overlap = "/srv/scans/ and /srv/scans/inside/ overlap"
    for wrong, words in (
        (
            {"archive_destinations": ["nodes", "elsewhere"], "archive_trees": [scans, inside]},
            ("elsewhere", overlap, "nobody-here"),
        ),
        ({"archive_trees": [{**scans, "path": "srv/../mail"}]}, ("path is 'srv/../mail', which is no absolute path",)),
    ):
        said = " ".join(lab.play("site", "-e", json.dumps(wrong), ok=False).messages)
        for word in (*words, "Nothing was changed"):
            assert word in said, word
    assert lab.differences(before) == {}


def test_check_mode_changes_nothing(lab):
    before = lab.fingerprints(*lab.addresses, lab.store)
    assert lab.play("site", "--check", "--diff").changed == 0
    assert lab.differences(before) == {}


def test_the_recipe_of_the_readme_restores_to_a_point_in_time(lab, archives):
    one, two = lab.roles()
    place = "/var/lib/postgresql/point"
    recipe = re.search(r"(?m)^    cd BACKUP\n(?:    .*\n)+", README.read_text(encoding="utf-8"))
    assert recipe and "2026-11-21 03:00:00+00" in recipe[0]
    lab.run(two, "install", "-d", "-o", "postgres", "-m", "700", place)
    archives.base_backup(two, one, f"{place}/backup")
    lab.sql(one, "CREATE TABLE precious AS SELECT 'still there' AS words")
    moment = lab.sql(one, "SELECT clock_timestamp()")
    lab.sql(one, "DROP TABLE precious")
    archives.write(one, 1)
    archives.wait_for_all(one, two, lab.store)
    script = recipe[0].replace("BACKUP", f"{place}/backup").replace("2026-11-21 03:00:00+00", moment)
    try:
        lab.run(two, "sh", "-euc", textwrap.dedent(script), user="postgres")
        log = f"{place}/restore.log"
        lab.wait_for(lambda: "ready to accept" in lab.run(two, "cat", log), "the restored server is open")
        assert lab.sql(two, "SELECT words FROM precious", port=5499) == "still there"
        lab.wait_for_replay(two, lab.sql(one, "SELECT pg_current_wal_lsn()"))
        assert lab.sql(two, "SELECT to_regclass('precious') IS NULL") == "t", "the standby itself went on"
    finally:
        print(lab.run(two, "cat", f"{place}/restore.log", check=False))
        program = f"/usr/lib/postgresql/{lab.version}/bin/pg_ctl"
        lab.run(two, program, "stop", "-m", "immediate", "-D", f"{place}/backup", user="postgres", check=False)
        lab.run(two, "rm", "-r", place)
    # A copy that has a timeline of its own leaves nothing of it in the archives.
    assert not any(name.startswith("00000002") for name in archives.held(two) | archives.held(lab.store))


def test_a_full_destination_keeps_the_wal_on_the_primary_until_there_is_room(lab, archives):
    one, two = lab.roles()
    with archives.changed(one, require="all"), archives.small_disk(one, "6m") as directory:
        names = archives.write(one, 4)
        archives.wait_for_state(one, "full")
        lab.wait_for(lambda: len(archives.ready(one)) >= 2, "WAL waits on the primary")
        assert archives.lacking(lab.store, one)
        assert "[archive_full]" in lab.play("status").output
        lab.run(lab.store, "mount", "-o", "remount,size=400m", directory)
        archives.wait_for_all(one, two, lab.store)
        assert set(names) <= archives.held(lab.store)
        lab.wait_for(lambda: not archives.ready(one), "nothing waits any more")


def test_a_network_that_is_cut_for_a_minute(lab, archives):
    one, two = lab.roles()
    with archives.cut_off(lab.store, "-s", lab.addresses[one], "-j", "DROP"):
        began = time.monotonic()
        # One destination is enough.
        names = archives.write(one, 2)
        archives.wait_for_all(one, two)
        assert archives.lacking(lab.store, one)
        # Without any, all WAL stays.
        with archives.cut_off(two, "-s", lab.addresses[one], "-p", "tcp", "--dport", "22", "-j", "DROP"):
            names += archives.write(one, 3)
            for place in (two, lab.store):
                archives.wait_for_state(one, "unreachable", place)
            lab.wait_for(lambda: len(archives.ready(one)) >= 3, "WAL waits on the primary")
            assert archives.lacking(two, one)
            assert "[archive_unreachable]" in lab.play("status").output
            time.sleep(max(0, began + 60 - time.monotonic()))
    archives.wait_for_all(one, two, lab.store)
    assert set(names) <= archives.held(two) & archives.held(lab.store)
    lab.wait_for(lambda: not archives.ready(one), "nothing waits any more")


def test_a_shipper_that_is_killed_in_the_middle_of_a_segment(lab, archives):
    one, two = lab.roles()
    with archives.changed(one, require="all", compression="none"):
        with archives.stopped_in_the_middle(one) as names:
            assert archives.ready(one)
            assert not set(names) <= archives.held(lab.store)
            lab.run(one, "systemctl", "kill", "--signal=KILL", archives.shipper)
        archives.wait_for_all(one, two, lab.store)
        lab.wait_for(lambda: not archives.ready(one), "nothing waits any more")
    assert archives.hashes(lab.store, names) == archives.hashes(two, names)
    lab.wait_for(lambda: not archives.unfinished(lab.store), "what came in part is gone")


def test_a_destination_that_dies_in_the_middle_of_a_segment(lab, archives):
    one, two = lab.roles()
    with archives.changed(one, require="all", compression="none"):
        with archives.stopped_in_the_middle(one) as names:
            lab.docker("kill", lab.store)
        names += archives.write(one, 2)
        lab.wait_for(lambda: len(archives.ready(one)) >= 2, "WAL waits on the primary")
        lab.restart_container(lab.store)
        archives.wait_for_all(one, two, lab.store)
        lab.wait_for(lambda: not archives.ready(one), "nothing waits any more")
    assert archives.hashes(lab.store, names) == archives.hashes(two, names)
    lab.wait_for(lambda: not archives.unfinished(lab.store), "what came in part is gone")


def test_a_clock_that_jumps_changes_nothing(lab, archives):
    one, two = lab.roles()
    lab.run(one, "apt-get", "install", "-qq", "--no-install-recommends", "faketime")
    with archives.clock(one) as step:
        for jump in ("+3d", "-3d", "+0"):
            step(jump)
            archives.write(one, 1)
            archives.wait_for_all(one, two, lab.store)
            assert lab.run(one, "systemctl", "is-active", archives.shipper).strip() == "active"


def test_many_small_documents_midnight_passes_meanwhile_and_days_are_sealed(lab, archives):
    """Dozens a day, and as many again on the last day as on all others; HOTSPARE_DOCUMENTS of them."""
    one, two = lab.roles()
    everywhere = (one, two, lab.store)
    with archives.no_timer(one):
        archives.scan(one, NIGHT, DOCUMENTS // 2)
        for day in BEFORE:
            archives.scan(one, day, DOCUMENTS // 2 // len(BEFORE))
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(archives.sync, one, at=f"{NIGHT} 23:59:59")
            late = 0
            while not running.done():
                late += 1
                archives.document(one, f"{NIGHT}/late-{late}.pdf", "when the old runbook had gone home")
                archives.document(one, f"{AFTER}/early-{late}.pdf", "before the old runbook came to work")
        assert AFTER in running.result().splitlines()[-1], "midnight passed meanwhile"
        print(running.result())
        archives.settle()
        archives.sync(one, at=f"{AFTER} 00:31:00")
        lab.run(lab.store, "test", "!", "-e", f"{archives.known(lab.store)}/scans/{NIGHT}.manifest")
        archives.sync(one, at=f"{AFTER} 02:05:00")
        written = DOCUMENTS // 2 + len(BEFORE) * (DOCUMENTS // 2 // len(BEFORE)) + 2 * late
        digest = archives.digest(one)
        assert digest.split()[0] == str(written)
        assert [archives.digest(host) for host in everywhere] == [digest] * 3
        for host in everywhere:
            for day in (NIGHT, *BEFORE):
                lab.run(host, "test", "-e", f"{archives.known(host)}/scans/{day}.manifest")
        # What happens to a sealed day is told, and goes nowhere.
        changed, removed = f"{NIGHT}/late-1.pdf", f"{BEFORE[0]}/scan-000000.txt"
        before = {path: lab.run(one, "cat", f"/srv/scans/{path}") for path in (changed, removed)}
        archives.document(one, changed, "something else")
        lab.run(one, "rm", f"/srv/scans/{removed}")
        archives.settle()
        archives.look_next(one, NIGHT)
        assert "changed after its day was sealed" in archives.sync(one, at=f"{AFTER} 02:10:00", ok=False)
        archives.look_next(one, BEFORE[0])
        archives.sync(one, at=f"{AFTER} 02:15:00")
        assert archives.digest(two) == archives.digest(lab.store) == digest
        for path, text in before.items():
            archives.document(one, path, text)


def test_a_standby_whose_stream_is_cut_and_whose_slot_is_gone_lives_from_the_archive(lab, archives):
    one, two = lab.roles()
    slot = lab.sql(one, "SELECT slot_name FROM pg_replication_slots")
    refuse = ("-p", "tcp", "--dport", "5432", "-s", lab.addresses[two], "-j", "REJECT", "--reject-with", "tcp-reset")
    with archives.cut_off(one, *refuse):
        lab.sql(one, "SELECT pg_terminate_backend(pid) FROM pg_stat_replication")
        lab.wait_for(lambda: lab.sql(one, "SELECT count(*) FROM pg_stat_replication") == "0", "nobody streams")
        lab.sql(one, f"SELECT pg_drop_replication_slot('{slot}')")
        lab.sql(one, "DROP TABLE IF EXISTS archived; CREATE TABLE archived AS SELECT 'by the archive alone' AS words")
        archives.write(one, 2)
        end = lab.sql(one, "SELECT pg_current_wal_lsn()")
        archives.write(one, 1)
        lab.wait_for_replay(two, end)
        assert lab.sql(two, "SELECT words FROM archived") == "by the archive alone"
        assert lab.sql(two, "SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'") == "0"
    assert lab.play("site").changed > 0  # the slot
    assert_pair(lab, one, two)


def test_a_planned_failover_turns_wal_and_documents_round(lab, archives):
    one, two = lab.roles()
    archives.document(one, f"{TODAY}/before.pdf", "before the cutover")
    archives.settle()
    with ledger(lab) as client, Watch(lab.addresses[one]) as old, Watch(lab.addresses[two]) as new:
        client.wait_for_rows(lab.addresses[one], 50)
        planned = lab.play("failover", "-e", f"target={two}")
        client.wait_for_rows(lab.addresses[two], 50)
    assert missing(lab, two, client.rows) == []
    assert both_writable(old, new) == []
    assert_pair(lab, two, one)
    print(f"planned: {planned.seconds:.1f} s, longest gap {client.longest_gap():.3f} s")
    # The runbook's step "validate the documents": present, missing, different, newest.
    count = archives.digest(two).split()[0]
    rows = re.findall(r'"scans +(\S+)(?: \(own\))? +(\d+) +(\d+) +(\d+) +(\S+)', planned.output)
    assert int(count) > DOCUMENTS // 2
    newest = f"{TODAY}/before.pdf"
    assert sorted(rows) == [(host, count, "0", "0", newest) for host in sorted((one, two, lab.store))]
    archives.document(two, f"{TODAY}/after.pdf", "after the cutover")
    lab.run(one, "sh", "-c", "! su scans -c 'touch /srv/scans/forbidden'")
    archives.write(two, 2)
    archives.wait_for_all(two, one, lab.store)
    texts = {f"{TODAY}/before.pdf": "before the cutover", f"{TODAY}/after.pdf": "after the cutover"}
    for host in (one, two, lab.store):
        lab.wait_for(lambda host=host: archives.documents(host, TODAY) == texts, f"the timer brought all to {host}")


def test_a_primary_that_dies_before_it_archived_leaves_no_gap_and_no_row_is_missing(lab, archives):
    two, one = lab.roles()
    base = "/var/lib/postgresql/restored"
    archives.base_backup(one, two, base)
    with ledger(lab) as client:
        client.wait_for_rows(lab.addresses[two], 50)
        # Nothing leaves the machine but the stream; it has three segments that nobody archived when it dies.
        lab.run(two, "iptables", "-I", "OUTPUT", "-p", "tcp", "--dport", "22", "-j", "REJECT")
        lab.run(two, "systemctl", "kill", "--signal=KILL", archives.shipper)
        unarchived = archives.write(two, 3)
        archives.document(two, f"{TODAY}/unshipped.pdf", "nobody else has this one")
        lab.wait_for_replay(one, lab.sql(two, "SELECT pg_current_wal_lsn()"))
        assert not set(unarchived[-2:]) & archives.held(lab.store)
        lab.docker("kill", two)
        forced = lab.play("failover", "-e", "mode=forced", "-e", f"confirm_unfenced={two}")
        client.wait_for_rows(lab.addresses[one], 50)
    print(f"forced: {forced.seconds:.1f} s, longest gap {client.longest_gap():.3f} s")
    archives.write(one, 1)
    archives.wait_for_all(one, lab.store)
    assert set(unarchived) <= archives.held(lab.store)
    rows = lab.sql(one, "SELECT number FROM ledger", "ledger")
    with archives.restored(one, base) as port:
        assert lab.sql(one, "SELECT number FROM ledger", "ledger", port=port) == rows
        assert lab.sql(one, "SELECT timeline_id FROM pg_control_checkpoint()", port=port) == "4"
    # Documents can be written here now.
    archives.document(one, f"{TODAY}/meanwhile.pdf", "while the other one was dead")


def test_the_dead_one_returns_with_what_only_it_had(lab, archives):
    one, two = lab.one, lab.two
    lab.restart_container(two)
    lab.play("rebuild_standby", "-e", f"node={two}", "-e", f"confirm={two}")
    assert_pair(lab, one, two)
    archives.wait_for_all(one, two, lab.store)
    names = {f"{TODAY}/{name}.pdf" for name in ("before", "after", "unshipped", "meanwhile")}
    for host in (one, two, lab.store):
        lab.wait_for(lambda host=host: set(archives.documents(host, TODAY)) == names, f"{host} has all documents")
    assert archives.documents(one, TODAY)[f"{TODAY}/unshipped.pdf"] == "nobody else has this one"
    places, found = checked(lab)
    assert [place["gaps"]["ok"] for place in places.values() if not place["own"]] == [True, True]
    assert [place["conflicts"] for place in places.values()] == [[], [], []]
    assert found["trees"][0]["problems"] == []
    assert lab.play("site").changed == 0
