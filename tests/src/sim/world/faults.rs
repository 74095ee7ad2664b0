//! What goes wrong, and how it ends.

use std::path::{Path, PathBuf};
use std::time::Duration;

use quire_protocol::BrokerId;
use quire_storage::disk::{CrashOptions, Disk, Fault, SimDisk, Survival};

use super::super::broker::{Broker, Running};
use super::super::invariants::Violation;
use super::super::network::Node;
use super::readers::LONE_READER;
use super::{Happening, World, node};

/// How a process ends that does not mean to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Crash {
    /// It is killed: what it had written is in the page cache.
    Kill,
    /// The machine loses its power: of what was not synced, anything may be left.
    PowerLoss,
    /// As that, and the machine comes back with an empty disk.
    Wipe,
}

impl World {
    pub(super) fn fault(&mut self) -> Result<(), Violation> {
        if self.is_healing {
            return Ok(());
        }
        let ids: Vec<BrokerId> = self.brokers.keys().copied().collect();
        let id = *self.dice.pick(&ids).expect("there are brokers");
        match self.dice.below(22) {
            0 | 1 => self.crash(id, Crash::Kill),
            2 | 3 => self.crash(id, Crash::PowerLoss),
            4 => {
                // All at once.
                if self.dice.happens(300) {
                    ids.iter().for_each(|id| self.crash(*id, Crash::PowerLoss));
                }
            }
            5 => {
                if self.dice.happens(250) {
                    self.crash(id, Crash::Wipe);
                }
            }
            6 | 7 => self.pause(id),
            8..=10 => self.cut(id, &ids),
            11 | 12 => self.heal_network(),
            13 | 14 => self.elect_controller()?,
            15 | 16 => self.slow_log(),
            17 => {
                self.quorum.orphan();
                self.say(format_args!("the controllers are without a leader"));
                let delay = self.dice.wait(Duration::from_millis(10), Duration::from_millis(600));
                self.schedule.after(delay, Happening::ElectController);
            }
            18 => self.fail_disk(id),
            19 => self.roll(id)?,
            _ => self.damage(),
        }
        let mean = self.options.fault_every;
        let delay = self.dice.wait(mean / 4, mean * 4);
        self.schedule.after(delay, Happening::Fault);
        Ok(())
    }

    /// Nothing is committed for a while, and meanwhile another controller comes to lead: it finds entries that it has not
    /// applied, and is asked for decisions before it has.
    fn slow_log(&mut self) {
        let lasts = self.dice.wait(Duration::from_millis(20), Duration::from_millis(300));
        self.commits_from = self.schedule.now() + lasts;
        self.say(format_args!("nothing is committed for {lasts:?}"));
        let delay = self.dice.wait(Duration::from_millis(5), lasts / 2);
        self.schedule.after(delay, Happening::ElectController);
    }

    /// A request to take a broker among the in-sync replicas is long on its way, and the broker loses power, or its disk, and
    /// is back before it arrives, out of reach of its leader.
    pub(super) fn overtake(&mut self, added: BrokerId, leader: BrokerId) -> Duration {
        let crash = if self.dice.happens(400) { Crash::Wipe } else { Crash::PowerLoss };
        self.crash(added, crash);
        self.network.cut(node(added), node(leader));
        self.network.cut(node(leader), node(added));
        self.schedule.after(Duration::from_millis(5), Happening::Start(added));
        // Time enough to register, and not so much that nobody waits for the answer any more.
        Duration::from_millis(self.dice.between(50, 850))
    }

    /// Some of the next syncs or writes of a broker's disk fail.
    fn fail_disk(&mut self, id: BrokerId) {
        let fault = match self.dice.below(3) {
            0 => Fault::WriteFails { nth: self.dice.between(1, 4) },
            _ => Fault::SyncFails { nth: self.dice.between(1, 4) },
        };
        self.say(format_args!("broker {id}: {fault:?}"));
        self.brokers[&id].disk.inject(fault);
        self.coverage.disk_faults += 1;
    }

    /// Bits of one broker's logs flip. That of one broker only: a cluster has no more copies than it has.
    fn damage(&mut self) {
        let Some(id) = self.options.damaged else { return };
        let disk = self.brokers[&id].disk.clone();
        let files = log_files(&disk);
        let Some(path) = self.dice.pick(&files).cloned() else { return };
        let Ok(len) = disk.open(&path, quire_storage::disk::OpenMode::Read).and_then(|file| file.len())
        else {
            return;
        };
        // Files are longer than what is in them; what is written stands at the beginning.
        let end = len.min(if self.dice.happens(500) { 2_000 } else { 20_000 });
        if end == 0 {
            return;
        }
        let (position, bit) = (self.dice.below(end), self.dice.below(8) as u8);
        self.say(format_args!("broker {id}: bit {bit} of byte {position} of {} flips", path.display()));
        disk.flip_bit(&path, position, bit);
        self.coverage.flips += 1;
    }

    pub(super) fn crash(&mut self, id: BrokerId, crash: Crash) {
        let Some(running) = self.brokers.get_mut(&id).and_then(|broker| broker.running.as_mut()) else {
            return;
        };
        if self.options.damaged == Some(id) && crash != Crash::Wipe {
            // After an unclean stop nobody can tell a damaged end of a log from one that was being written: with both at
            // once acknowledged records are cut unseen, and one of the two is enough for a run.
            running.wants_drain = true;
            return;
        }
        self.say(format_args!("broker {id}: {crash:?}"));
        self.ended(id);
        let seed = self.dice.below(u64::MAX);
        let survival = match self.dice.below(3) {
            0 => Survival::Nothing,
            _ => Survival::Random,
        };
        let broker = self.brokers.get_mut(&id).expect("it exists");
        match crash {
            Crash::Kill => broker.disk.kill(),
            Crash::PowerLoss => {
                broker.disk.crash(&CrashOptions { data: survival, names: survival });
            }
            Crash::Wipe => broker.replace_disk(seed),
        }
        self.coverage.crashes += 1;
        self.coverage.power_losses += u64::from(crash == Crash::PowerLoss);
        self.coverage.wipes += u64::from(crash == Crash::Wipe);
        let delay = self.dice.wait(Duration::from_millis(5), Duration::from_millis(1500));
        self.schedule.after(delay, Happening::Start(id));
    }

    /// A process is gone, and with it what it had on its way and was asked.
    fn ended(&mut self, id: BrokerId) {
        let process = self.process(id);
        self.brokers.get_mut(&id).expect("it exists").stopped();
        self.missed.remove(&id);
        self.calls.retain(|(asked, _), _| *asked != process);
        self.invariants.forget(id);
        for (stream, end) in self.network.stop(node(id)) {
            let delay = self.dice.wait(Duration::from_millis(1), super::IDLE_TIME);
            self.schedule.after(delay, Happening::Loss(stream, end));
        }
    }

    /// An operator stops a broker in order, and starts it again.
    fn roll(&mut self, id: BrokerId) -> Result<(), Violation> {
        if let Some(running) = self.brokers.get_mut(&id).and_then(|broker| broker.running.as_mut())
            && !running.is_paused
        {
            running.wants_drain = true;
            self.say(format_args!("broker {id}: is to stop"));
        }
        Ok(())
    }

    pub(super) fn stopped_in_order(&mut self, id: BrokerId) {
        self.say(format_args!("broker {id}: stopped in order"));
        self.ended(id);
        self.brokers[&id].disk.kill();
        self.coverage.rolls += 1;
        let delay = self.dice.wait(Duration::from_millis(5), Duration::from_millis(300));
        self.schedule.after(delay, Happening::Start(id));
    }

    fn pause(&mut self, id: BrokerId) {
        let running = self.brokers.get_mut(&id).and_then(|broker| broker.running.as_mut());
        let Some(running) = running.filter(|running| !running.is_paused) else { return };
        running.is_paused = true;
        self.say(format_args!("broker {id}: paused"));
        let delay = self.dice.wait(Duration::from_millis(10), Duration::from_millis(2000));
        self.schedule.after(delay, Happening::Resume(id));
    }

    pub(super) fn resume(&mut self, id: BrokerId) {
        let running = self.brokers.get_mut(&id).and_then(|broker| broker.running.as_mut());
        let was_paused = |running: &mut Running| std::mem::take(&mut running.is_paused);
        if !running.is_some_and(was_paused) {
            return;
        }
        self.say(format_args!("broker {id}: goes on"));
        for happening in self.missed.remove(&id).unwrap_or_default() {
            self.schedule.after(Duration::ZERO, happening);
        }
    }

    fn cut(&mut self, id: BrokerId, ids: &[BrokerId]) {
        let both_ways = self.dice.happens(500);
        let clients = (0..self.options.clients).map(|client| Node(300 + client));
        let consumers = std::iter::once(LONE_READER).chain(self.member_nodes());
        let others = ids.iter().filter(|other| **other != id).map(|other| (node(*other), 600));
        let controllers = self.controllers.keys().map(|controller| (*controller, 300));
        let ends: Vec<(Node, u64)> =
            others.chain(controllers).chain(clients.chain(consumers).map(|client| (client, 300))).collect();
        for (other, chance) in ends {
            if self.dice.happens(chance) {
                self.network.cut(node(id), other);
                if both_ways {
                    self.network.cut(other, node(id));
                }
                for stream in self.network.between(node(id), other) {
                    self.idle_soon(stream);
                }
            }
        }
        self.coverage.cuts += 1;
        self.say(format_args!("broker {id}: cut off{}", if both_ways { "" } else { ", one way" }));
    }

    fn heal_network(&mut self) {
        self.network.heal();
        self.say(format_args!("the links are whole"));
        for (stream, end, due) in self.network.pending() {
            self.schedule.at(due, Happening::Arrival(stream, end));
        }
    }

    pub(super) fn heal(&mut self) -> Result<(), Violation> {
        self.is_healing = true;
        self.commits_from = self.schedule.now();
        self.say(format_args!("the faults are over"));
        self.network.weather.loss_per_mille = 0;
        self.network.weather.stray_per_mille = 0;
        self.heal_network();
        self.heal_members();
        self.schedule.after(Duration::ZERO, Happening::ElectController);
        let ids: Vec<BrokerId> = self.brokers.keys().copied().collect();
        for id in ids {
            self.schedule.after(Duration::from_millis(1), Happening::Resume(id));
            self.brokers[&id].disk.heal();
            self.schedule.after(Duration::from_millis(5), Happening::Start(id));
        }
        Ok(())
    }
}

impl World {
    /// A log whose disk failed twice, or before there was anything, is mended by a restart, as an operator would.
    pub(super) fn restart_failed(&mut self) {
        let failed = |broker: &Broker| broker.running.as_ref().is_some_and(Running::has_failed);
        let ids: Vec<BrokerId> =
            self.brokers.iter().filter(|(_, broker)| failed(broker)).map(|(id, _)| *id).collect();
        for id in ids {
            self.crash(id, Crash::Kill);
        }
    }
}

/// Every file of every log.
fn log_files(disk: &SimDisk) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let topics = Path::new(super::super::broker::TOPICS);
    for topic in disk.list(topics).unwrap_or_default() {
        for partition in disk.list(&topics.join(&topic)).unwrap_or_default() {
            let dir = topics.join(&topic).join(&partition);
            let names = disk.list(&dir).unwrap_or_default();
            files.extend(names.iter().map(|name| dir.join(name)).filter(|path| path.extension().is_some()));
        }
    }
    files.sort();
    files
}
