#!/usr/bin/python
# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_replication_state
short_description: The truth about the replication of one PostgreSQL node, and a desired state for it
version_added: 0.1.0
description:
  - Reads what one node is and does, in one connection and one statement. Of a stopped server it tells what
    C(pg_controldata) and the files tell. A server that is down, starting, frozen or absent is no error, RV(node.role)
    and RV(node.reason) say so.
  - What is not known is V(null), never 0 and never an empty list.
  - With O(role), O(upstream), O(slots) or O(wait_for) it also makes sure that the node is as desired. If any of it
    must be refused, nothing is changed at all.
  - It never restarts or stops a server.
options:
  role:
    description: Fail unless the node runs in this role.
    type: str
    choices: [primary, standby]
  upstream:
    description:
      - Whom the node follows when it is a standby. It is written durably to C(conf.d/60-hotspare-upstream.conf) beside
        O(config_file), and what C(ALTER SYSTEM) says of the same two settings is removed, since it would win.
      - A running standby reloads it, connects to the new upstream without a restart, and is then asked whether it
        took it.
      - A stopped server also gets C(standby.signal), since with an upstream alone it would start as a second primary.
        What it would start with is then checked.
      - A running primary is refused.
    type: dict
    suboptions:
      host:
        description: The host name or address of the upstream.
        type: str
        required: true
      port:
        description: Its port.
        type: int
        default: 5432
      user:
        description: The role to log in as, with the attribute REPLICATION.
        type: str
      application_name:
        description: What this standby is called there, in C(pg_stat_replication) and C(synchronous_standby_names).
        type: str
      slot:
        description: The physical replication slot there that is this standby's. It is not created by this option.
        type: str
      passfile:
        description:
          - A password file of mode 0600 on this node that O(account) can read. A password itself is never written.
        type: path
      dbname:
        description: The database to name, which the synchronisation of failover slots needs (PostgreSQL 17 and newer).
        type: str
      parameters:
        description: Further connection parameters of libpq, for example C(sslmode) and C(sslrootcert). Not C(password).
        type: dict
        default: {}
  slots:
    description:
      - The physical replication slots of ours that exist afterwards, exactly these. Ours are those whose name starts
        with O(slot_prefix), all others are never touched.
      - On a standby with O(upstream) logical failover slots (17 and later) that are no synchronised copies and have the
        name of one on the primary are dropped, too. They are left over from its time as the primary and block slot
        synchronisation.
      - They are made so that they keep WAL from then on, before anybody has used them.
      - One that has lost its WAL or never kept any is made anew if nobody uses it. One in use is never dropped.
    type: list
    elements: str
  peers:
    description:
      - Other nodes that this one is to ask, over a real replication connection each, what they are (RV(node.peers)).
      - So it is seen whether C(pg_hba.conf), the password and the network let it follow them, or whether another node
        still answers as a primary.
      - They are asked all at once, and given 2 seconds together. One that does not answer is no failure.
    type: list
    elements: dict
    suboptions:
      name:
        description: What the other node is called.
        type: str
        required: true
      host:
        description: Its host name or address.
        type: str
        required: true
        aliases: [address]
      port:
        description: Its port.
        type: int
        default: 5432
      user:
        description: The role to log in as, with the attribute REPLICATION.
        type: str
      passfile:
        description: A password file of mode 0600 on this node that O(account) can read.
        type: path
  wait_for:
    description:
      - Wait until all of this holds. What is not known does not hold.
      - Check mode does not wait, it returns in RV(unmet) what does not hold now.
    type: dict
    suboptions:
      streaming:
        description: This standby streams, from O(upstream) if that is given.
        type: bool
        default: false
      streaming_to:
        description: To all standbys of these application names this node streams.
        type: list
        elements: str
        default: []
      replayed_lsn:
        description: Up to here this standby, or each standby in O(wait_for.streaming_to), has replayed.
        type: str
      lag_bytes:
        description:
          - At most so many bytes this standby, or each standby in O(wait_for.streaming_to), is behind with its replay.
          - A standby knows that only once its primary has told it its position, up to 30 seconds after it has
            connected to an idle primary. The primary knows it at once.
        type: int
      received_timeline:
        description: The timeline that this standby receives.
        type: int
  timeout:
    description:
      - Seconds, the longest time to wait for O(wait_for), and again for a running standby to take its O(upstream).
    type: int
    default: 60
extends_documentation_fragment:
  - hotspare.postgresql.node
attributes:
  check_mode:
    description: Makes the same decision and changes nothing.
    support: full
  diff_mode:
    description: Shows the upstream, C(standby.signal) and the slots before and after.
    support: full
author:
  - hotspare contributors (@hotspare)
"""

EXAMPLES = r"""
- name: Ask a node what it is
  hotspare.postgresql.pg_replication_state:
    data_directory: /var/lib/postgresql/17/main
    config_file: /etc/postgresql/17/main/postgresql.conf
  become: true
  register: answer

- name: See whether this node could follow db2
  hotspare.postgresql.pg_replication_state:
    data_directory: /var/lib/postgresql/17/main
    config_file: /etc/postgresql/17/main/postgresql.conf
    peers:
      - name: db2
        host: db2.example.org
        user: replicator
        passfile: /var/lib/postgresql/.hotspare-main.pgpass
  become: true
  register: answer

- name: Have exactly one slot of ours on the primary
  hotspare.postgresql.pg_replication_state:
    data_directory: /var/lib/postgresql/17/main
    config_file: /etc/postgresql/17/main/postgresql.conf
    role: primary
    slots: [hotspare_db2]
  become: true

- name: Follow the new primary without a restart, and wait until WAL of its timeline comes in
  hotspare.postgresql.pg_replication_state:
    data_directory: /var/lib/postgresql/17/main
    config_file: /etc/postgresql/17/main/postgresql.conf
    role: standby
    upstream:
      host: db2.example.org
      user: replicator
      application_name: db1
      slot: hotspare_db1
      passfile: /var/lib/postgresql/.hotspare-main.pgpass
    wait_for:
      streaming: true
      received_timeline: 2
    timeout: 30
  become: true
"""

RETURN = r"""
unmet:
  description: What of O(wait_for) does not hold, one sentence each. Empty unless in check mode or failed.
  returned: when O(wait_for) is given
  type: list
  elements: str
  sample: []
node:
  description:
    - The state of the node, after what was changed. Also returned with a failure, as far as it is known.
    - Each key is always there. V(null) means not known, or not applicable to the role. Positions in the WAL (LSN) are
      text, times are ISO 8601 in UTC, sizes are bytes, durations are seconds.
  returned: always, except for wrong options
  type: dict
  contains:
    name:
      description: What the node is called.
      type: str
      returned: always
      sample: db1
    role:
      description:
        - V(primary) or V(standby) for a running server, V(stopped) for data without a server, V(absent) for no data.
        - V(unknown) when it cannot be told, see RV(node.reason). Nothing may be done with such a node.
      type: str
      returned: always
      sample: standby
    reason:
      description: Why the role is unknown, or why a standby does not answer yet.
      type: str
      returned: always
      sample: null
    data:
      description: What the data directory is, V(absent), V(empty), V(cluster), or V(foreign) if it holds anything else.
      type: str
      returned: always
      sample: cluster
    data_directory:
      description: The data directory.
      type: str
      returned: always
      sample: /var/lib/postgresql/17/main
    wal_directory:
      description: Where its WAL lies, elsewhere when C(pg_wal) is a symbolic link. V(null) where there is no data.
      type: str
      returned: always
      sample: /var/lib/postgresql/17/main/pg_wal
    major_version:
      description: The major version that made the data.
      type: int
      returned: always
      sample: 17
    server_version:
      description: The version of the running server as C(server_version_num).
      type: int
      returned: always
      sample: 170006
    system_identifier:
      description: The identity of the cluster, equal on all its nodes.
      type: str
      returned: always
      sample: "7571430498017318938"
    timeline:
      description: The newest timeline the node is known to have reached.
      type: int
      returned: always
      sample: 1
    history:
      description:
        - The ancestors of the timeline, each with C(timeline) and C(switch_lsn), the position where it was left.
      type: list
      elements: dict
      returned: always
      sample: []
    standby_signal:
      description: Whether C(standby.signal) is there, with which a server starts as a standby.
      type: bool
      returned: always
      sample: true
    recovery_signal:
      description: Whether C(recovery.signal) is there.
      type: bool
      returned: always
      sample: false
    backup_label:
      description: Whether C(backup_label) is there, in a copy that was never started.
      type: bool
      returned: always
      sample: false
    control:
      description: What C(pg_controldata) says. Its timeline and settings can be older than those of a running server.
      type: dict
      returned: always
      sample:
        state: in archive recovery
        system_identifier: "7571430498017318938"
        checkpoint_lsn: 0/3000060
        redo_lsn: 0/3000028
        timeline: 1
        prev_timeline: 1
        min_recovery_lsn: 0/3000108
        min_recovery_timeline: 1
        backup_start_lsn: 0/0
        backup_end_required: false
        wal_segment_size: 16777216
        block_size: 8192
        data_checksums: 1
        wal_log_hints: true
        full_page_writes: true
        wal_level: replica
        max_connections: 100
        max_worker_processes: 8
        max_wal_senders: 10
        max_prepared_transactions: 0
        max_locks_per_transaction: 64
        pg_control_version: 1700
        catalog_version: 202406281
        checkpoint_time: Thu Nov 20 10:48:58 2026
        next_xid: "0:735"
    in_recovery:
      description: Whether the server is in recovery.
      type: bool
      returned: always
      sample: true
    hot_standby:
      description: Of a standby, whether it accepts connections. V(false) before it has reached consistency.
      type: bool
      returned: always
      sample: true
    recovery:
      description: Of a standby, how WAL comes in, by V(streaming), from the V(archive), or not at all (V(none)).
      type: str
      returned: always
      sample: streaming
    lsn:
      description: Positions in the WAL.
      type: dict
      returned: always
      contains:
        current:
          description: Of a primary, written up to here.
          type: str
          returned: always
        insert:
          description: Of a primary, inserted up to here.
          type: str
          returned: always
        flush:
          description: Of a primary, on disk up to here.
          type: str
          returned: always
        receive:
          description: Of a standby, received and on disk. It falls back when the receiver restarts.
          type: str
          returned: always
        replay:
          description: Of a standby, replayed.
          type: str
          returned: always
        held:
          description: All up to here is on this node, of a standby the greater of C(receive) and C(replay).
          type: str
          returned: always
      sample:
        current: null
        insert: null
        flush: null
        receive: 0/304B3F8
        replay: 0/304B3F8
        held: 0/304B3F8
    replay:
      description:
        - Of a standby, C(state) (V(not paused), V(pause requested) or V(paused)), whether that is C(paused), the time
          of the C(last_commit) replayed, and C(min_apply_delay_ms), the delay it is told to keep in milliseconds.
      type: dict
      returned: always
      sample:
        state: not paused
        paused: false
        last_commit: "2026-11-20T10:44:58.728615+00:00"
        min_apply_delay_ms: 0
    lag:
      description:
        - Of a standby, C(bytes) of WAL that its primary had and it had not when the primary last spoke,
          C(replay_bytes) that it holds and has not replayed, and C(seconds) since the last commit it replayed.
        - C(bytes) and C(seconds) are V(null) unless the stream is alive. C(seconds) is 0 only if nothing is behind.
      type: dict
      returned: always
      sample:
        bytes: 0
        replay_bytes: 0
        seconds: 0.0
    wal_receiver:
      description:
        - The row of C(pg_stat_wal_receiver), without the connection string, and with the C(application_name) in it
          and the C(silent_seconds) since the primary's last message. V(null) if there is no receiver.
      type: dict
      returned: always
      sample:
        pid: 29470
        status: streaming
        receive_start_lsn: 0/3000000
        receive_start_tli: 1
        written_lsn: 0/304B3F8
        flushed_lsn: 0/304B3F8
        received_tli: 1
        last_msg_send_time: "2026-11-20T10:51:03.359845+00:00"
        last_msg_receipt_time: "2026-11-20T10:51:03.359876+00:00"
        latest_end_lsn: 0/304B3F8
        latest_end_time: "2026-11-20T10:49:03.086396+00:00"
        slot_name: hotspare_db2
        sender_host: db1.example.org
        sender_port: 5432
        application_name: db2
        silent_seconds: 1.232
    replication:
      description:
        - The rows of C(pg_stat_replication), with the lags in seconds, the slot that each uses, and C(lag_bytes), how
          far each stage is behind this node's position in bytes.
      type: list
      elements: dict
      returned: always
      sample:
        - pid: 29471
          application_name: db2
          client_addr: 192.0.2.2
          usename: replicator
          state: streaming
          sync_state: async
          sync_priority: 0
          sent_lsn: 0/304B3F8
          write_lsn: 0/304B3F8
          flush_lsn: 0/304B3F8
          replay_lsn: 0/304B3F8
          write_lag: 0.001
          flush_lag: 0.001
          replay_lag: 0.002
          lag_bytes: {sent: 0, write: 0, flush: 0, replay: 0}
          slot_name: hotspare_db2
          backend_start: "2026-11-20T10:43:58.971186+00:00"
          reply_time: "2026-11-20T10:51:13.385437+00:00"
    slots:
      description:
        - The replication slots, with the C(retained_bytes) of WAL each keeps and whether it is C(ours).
        - C(inactive_since), C(failover), C(synced) and C(invalidation_reason) are there from PostgreSQL 17 on.
      type: list
      elements: dict
      returned: always
      sample:
        - name: hotspare_db2
          type: physical
          active: true
          active_pid: 29471
          temporary: false
          restart_lsn: 0/304B3F8
          retained_bytes: 0
          wal_status: reserved
          safe_wal_size: null
          inactive_since: null
          failover: false
          synced: false
          invalidation_reason: null
          database: null
          plugin: null
          ours: true
    archiver:
      description:
        - The row of C(pg_stat_archiver), C(archive_mode) as C(mode), whether there is a command or library
          (C(command_set)), and the number of files of WAL that are C(ready) to be archived. Of a stopped server only
          the last is known.
      type: dict
      returned: always
      sample:
        mode: "on"
        command_set: true
        archived_count: 12
        last_archived_wal: "00000001000000000000000C"
        last_archived_time: "2026-11-20T10:43:58.971186+00:00"
        failed_count: 0
        last_failed_wal: null
        last_failed_time: null
        ready: 0
    archive:
      description:
        - What the shipper of the role C(archive) says of itself and of each destination of this node's WAL. V(null) if
          nothing is shipped from here, which is so without C(hotspare-archive.json) beside the server's configuration.
        - C(running) is whether it lives and speaks, V(null) if that cannot be told, and C(reason) says why it is not
          V(true). C(acknowledged) is the last file that it told the server to be archived. Those of
          C(empty) are backup history files without content, which are not archived.
        - Of each destination C(state) is V(connected), V(unreachable), V(full), V(conflict) or V(refused) since
          C(since), and C(last) the last file that came there, at C(last_at). C(waiting) and C(waiting_bytes) count what
          is marked to be archived and is not there, the oldest for C(oldest_waiting_seconds). C(behind) files are
          archived elsewhere and come there later, C(left) files are gone from C(pg_wal) and
          M(hotspare.postgresql.archive_sync) brings them.
      type: dict
      returned: always
      sample:
        running: true
        reason: null
        pid: 812
        since: "2026-11-20 10:43:58 UTC"
        version: 0.1.0
        updated: "2026-11-20 10:44:58 UTC"
        acknowledged: "00000001000000000000000C"
        empty: []
        destinations:
          - name: db2
            state: connected
            since: "2026-11-20 10:43:58 UTC"
            error: null
            last: "00000001000000000000000C"
            last_at: "2026-11-20 10:44:51 UTC"
            waiting: 0
            waiting_bytes: 0
            oldest_waiting_seconds: null
            behind: 0
            left: 0
    zfs:
      description:
        - What goes on with the ZFS snapshots of this node, V(null) if the role C(zfs) has not set it up.
        - C(sends) are the streams under way just now, C(for) a C(rebuild) of this node or a C(backup) of it, with the
          bytes that were sent and are estimated, bytes per second and the seconds left, V(null) until they can be told.
        - C(backup) is V(null) if no snapshots are to be kept. Its C(state) is that of the timer's last run, V(done),
          V(skipped) when it was another node's turn, or V(failed), V(null) before the first. C(newest) is the newest
          copy, C(age_seconds) old, and C(late) says whether the timer has missed two of its times since C(at).
        - C(reason) says why something is not known.
      type: dict
      returned: always
      sample:
        sends:
          - for: backup
            source: tank/pg
            destination: vault/pg/db2
            dataset: vault/pg/db2/data
            snapshot: hotspare:backup-20261122T030000Z
            kind: incremental
            number: 2
            of: 3
            sent_bytes: 10485760
            estimated_bytes: 31457280
            rate: 4194304
            seconds_left: 5
            began: "2026-11-22 03:00:01 UTC"
            updated: "2026-11-22 03:00:04 UTC"
        backup:
          state: done
          at: "2026-11-22 02:00:09 UTC"
          reason: it is a standby, as zfs_backup_from wants it
          error: null
          newest:
            snapshot: hotspare:backup-20261122T020000Z
            guid: "9433184356270573829"
            lsn: 0/5000060
            taken: 1795312802.0
            kind: incremental
            sent_bytes: 73728
            seconds: 0.6
          late_after: 1795320000.0
          dataset: vault/pg/db2
          host: null
          age_seconds: 3609.2
          late: false
        reason: null
    settings:
      description:
        - The settings that matter for replication, each with C(value), C(unit), C(source), C(sourcefile) and
          C(pending_restart).
        - Of C(archive_command) and C(restore_command) it is only told that they are set, and C(primary_conninfo) is
          told without its password.
      type: dict
      returned: always
      sample:
        wal_level: {value: replica, unit: null, source: default, sourcefile: null, pending_restart: false}
    pending_restart:
      description: All settings that a restart would change.
      type: list
      elements: str
      returned: always
      sample: []
    clients:
      description: Connections of clients, without walsenders and without our own.
      type: int
      returned: always
      sample: 3
    prepared_transactions:
      description: Open prepared transactions.
      type: int
      returned: always
      sample: 0
    oldest_transaction_seconds:
      description: How long the oldest transaction of a client has been open, 0 if none is.
      type: float
      returned: always
      sample: 0.0
    running_backups:
      description: Base backups being taken from this node. Rate and time left are V(null) until they can be told.
      type: list
      elements: dict
      returned: always
      sample:
        - pid: 30112
          application_name: pg_basebackup
          phase: streaming database files
          total_bytes: 31457280
          streamed_bytes: 10485760
          started_at: "2026-11-20T10:43:58.971186+00:00"
          seconds: 2.5
          bytes_per_second: 4194304
          seconds_left: 5.0
    upstream:
      description:
        - Whom the node follows, or would if it were a standby. V(null) if it is told nobody.
        - Of a stopped server this is what its configuration files say, as C(postgres -C) reads them.
      type: dict
      returned: always
      sample:
        conninfo: >-
          host=db1.example.org port=5432 user=replicator passfile=/var/lib/postgresql/.hotspare-main.pgpass
          application_name=db2
        host: db1.example.org
        port: 5432
        user: replicator
        application_name: db2
        passfile: /var/lib/postgresql/.hotspare-main.pgpass
        slot: hotspare_db2
    tablespaces:
      description: The tablespaces outside the data directory. Of a stopped server C(name) is their number.
      type: list
      elements: dict
      returned: always
      sample:
        - name: archive
          location: /srv/archive
    rebuild:
      description:
        - What M(hotspare.postgresql.pg_rebuild) is making or has left beside the data directory, the directories
          C(seeding) and C(rewinding), and its C(note). V(null) if there is nothing.
      type: dict
      returned: always
      sample: null
    lock:
      description:
        - Who works on the cluster from where, as M(hotspare.postgresql.cluster_lock) has noted it on this node, with
          C(expires_in) in seconds (negative when it is over) and C(alive), whether that run still runs, V(null) unless
          this machine is where it runs. V(null) if nobody does.
        - A lock that cannot be read has no C(token), but a C(reason).
      type: dict
      returned: always
      sample:
        owner: alice@control
        purpose: failover to db2
        since: "2026-11-20 10:43:58 UTC"
        token: 8b9d6ab4a3a5d6e1
        control:
          host: control
          pid: 4711
          started: 123456
          boot_id: e6ddf9c8-b3c2-4ca0-a18c-b3feca9f6253
          namespace: pid:[4026531836]
        expires_in: 588.2
        alive: null
        path: /run/lock/hotspare-0123456789abcdef.operation.json
    armed:
      description:
        - What the process of M(hotspare.postgresql.pg_promote) says that waits for the proof. V(null) if there was none
          since the boot.
        - C(state) is V(armed), V(promoting), V(promoted), V(disarmed), V(expired), V(refused), V(dead) when its process
          is gone, or V(unknown); C(reason) says why. C(expires_in) is in seconds, C(position) is where it was armed,
          C(proof) the record that it found, C(phases) are seconds after the end of the stream, C(at) seconds since the
          epoch, and C(collected) says whether a run has seen the promotion.
      type: dict
      returned: always
      sample: null
    fingerprint:
      description:
        - What a plan for this node depends on, a short text that changes with each start, stop and change of role. It
          is for O(hotspare.postgresql.cluster_lock#module:expect), and was read before all else.
      type: str
      returned: always
      sample: data, server 4711 1795183200, standby.signal, 00000002.history, not armed
    superseded:
      description:
        - What the guard noted when it refused to start this node as a primary, the C(primary) it saw, its C(timeline)
          and C(system_identifier). V(null) if there is no such note, or nothing depends on it any more.
      type: dict
      returned: always
      sample: null
    peers:
      description:
        - What each node of O(peers) said, C(answer) being V(primary) or V(standby), V(refused) when its host says that
          nobody listens, V(silent) when nothing came in time or there is no way there, V(auth) when C(pg_hba.conf) or
          the password does not let us in, and V(unknown) for all else. C(detail) says more.
        - C(system_identifier) and C(timeline) are V(null) unless it answered. C(seconds) is how long it took.
        - V(null) if none were to be asked.
      type: list
      elements: dict
      returned: always
      sample:
        - name: db2
          host: db2.example.org
          port: 5432
          answer: standby
          detail: it answers as a standby
          system_identifier: "7571430498017318938"
          timeline: 1
          seconds: 0.011
    synchronous_standby_names:
      description:
        - For which standbys its commits wait when it is the primary; of a stopped server what its files say.
      type: str
      returned: always
      sample: ""
    data_owner:
      description: The account to which the data directory belongs.
      type: str
      returned: always
      sample: postgres
    auto_conf_owner:
      description: The account to which C(postgresql.auto.conf) belongs.
      type: str
      returned: always
      sample: postgres
    wal_free_bytes:
      description: Free space in bytes for WAL.
      type: int
      returned: always
      sample: 81328517120
    machine_id:
      description: The content of C(/etc/machine-id).
      type: str
      returned: always
      sample: 3d1219c7c4c5404aaa1f6d2a48adfda4
    boot_id:
      description: The identity of this boot of the machine, which containers on it share.
      type: str
      returned: always
      sample: e6ddf9c8-b3c2-4ca0-a18c-b3feca9f6253
    free_bytes:
      description: Free space in bytes where the data directory lies, or would lie.
      type: int
      returned: always
      sample: 81328517120
    installed_versions:
      description: Major versions whose server is installed under C(/usr/lib/postgresql).
      type: list
      elements: int
      returned: always
      sample: [17]
    problems:
      description:
        - What is wrong with this node, the worst first, each with a stable C(code), a C(severity) and a C(detail).
        - V(error) means that the node or its replication does not work or must not be trusted, V(warning) that
          somebody should look, V(info) that it is good to know.
      type: list
      elements: dict
      returned: always
      sample:
        - code: slot_inactive
          severity: warning
          detail: nobody uses slot hotspare_db3, which keeps 48 MiB of WAL
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.hotspare.postgresql.plugins.module_utils.desired import desired_from_params, ensure
from ansible_collections.hotspare.postgresql.plugins.module_utils.peers import peers_from_params
from ansible_collections.hotspare.postgresql.plugins.module_utils.server import NODE_ARGUMENTS, instance_from_params
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            **NODE_ARGUMENTS,
            role=dict(type="str", choices=["primary", "standby"]),
            upstream=dict(
                type="dict",
                options=dict(
                    host=dict(type="str", required=True),
                    port=dict(type="int", default=5432),
                    user=dict(type="str"),
                    application_name=dict(type="str"),
                    slot=dict(type="str"),
                    passfile=dict(type="path"),
                    dbname=dict(type="str"),
                    parameters=dict(type="dict", default={}),
                ),
            ),
            slots=dict(type="list", elements="str"),
            peers=dict(
                type="list",
                elements="dict",
                options=dict(
                    name=dict(type="str", required=True),
                    host=dict(type="str", required=True, aliases=["address"]),
                    port=dict(type="int", default=5432),
                    user=dict(type="str"),
                    passfile=dict(type="path"),
                ),
            ),
            wait_for=dict(
                type="dict",
                options=dict(
                    streaming=dict(type="bool", default=False),
                    streaming_to=dict(type="list", elements="str", default=[]),
                    replayed_lsn=dict(type="str"),
                    lag_bytes=dict(type="int"),
                    received_timeline=dict(type="int"),
                ),
            ),
            timeout=dict(type="int", default=60),
        ),
        supports_check_mode=True,
    )
    try:
        result = ensure(
            instance_from_params(module.params),
            desired_from_params(module.params),
            timeout=module.params["timeout"],
            check_mode=module.check_mode,
            peers=peers_from_params(module.params["peers"]),
        )
    except HotspareError as error:
        module.fail_json(msg=error.message, **error.facts)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
