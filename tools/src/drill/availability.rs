//! For how long writes stood still after a fault: the longest time in which some partition acknowledged nothing.

use std::time::Duration;

/// Acknowledgements by partition, and the fault under way.
#[derive(Debug)]
pub struct Availability {
    /// When each partition last acknowledged something.
    last: Vec<Duration>,
    fault: Option<Fault>,
    outages: Vec<Duration>,
}

#[derive(Debug)]
struct Fault {
    since: Duration,
    /// The longest gap of any partition so far that has ended.
    longest: Duration,
}

impl Availability {
    /// Of so many partitions.
    pub fn new(partitions: u32) -> Availability {
        Availability { last: vec![Duration::ZERO; partitions as usize], fault: None, outages: Vec::new() }
    }

    /// A partition acknowledged something.
    pub fn acknowledged(&mut self, partition: u32, now: Duration) {
        let Some(last) = self.last.get_mut(partition as usize) else { return };
        if let Some(fault) = &mut self.fault {
            fault.longest = fault.longest.max(now.saturating_sub(fault.since.max(*last)));
        }
        *last = now;
    }

    /// Something was done to the cluster; what comes from now on is counted to it.
    pub fn fault(&mut self, now: Duration) {
        self.end_fault(now);
        self.fault = Some(Fault { since: now, longest: Duration::ZERO });
    }

    /// Whether every partition acknowledged something since `time`.
    pub fn is_all_since(&self, time: Duration) -> bool {
        self.last.iter().all(|last| *last > time)
    }

    /// What is observed from now on has nothing to do with the fault. Returns its outage.
    pub fn end_fault(&mut self, now: Duration) -> Option<Duration> {
        let fault = self.fault.take()?;
        let open = self.last.iter().map(|last| now.saturating_sub(fault.since.max(*last)));
        // A partition that has not come back by now is out for at least so long; one that acknowledges is in a short gap.
        let outage = open.max().unwrap_or_default().max(fault.longest);
        self.outages.push(outage);
        Some(outage)
    }

    /// The outage of each fault that has ended, in order.
    pub fn outages(&self) -> &[Duration] {
        &self.outages
    }
}

/// The smallest of `sorted` that at least this share of them is not above; nothing where there are none.
pub fn percentile(sorted: &[Duration], share: f64) -> Option<Duration> {
    let place = (share * sorted.len() as f64).ceil().max(1.0) as usize;
    sorted.get(place.min(sorted.len()).checked_sub(1)?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn an_outage_is_the_slowest_partitions_and_begins_with_the_fault() {
        let mut availability = Availability::new(2);
        availability.acknowledged(0, ms(90));
        availability.acknowledged(1, ms(95));
        availability.fault(ms(100));
        // What was on its way when the fault came does not hide the outage.
        availability.acknowledged(0, ms(101));
        availability.acknowledged(1, ms(130));
        assert!(availability.is_all_since(ms(100)) && !availability.is_all_since(ms(101)));
        availability.acknowledged(0, ms(801));
        availability.acknowledged(1, ms(802));
        availability.acknowledged(0, ms(803));
        assert_eq!(availability.end_fault(ms(804)), Some(ms(700)));
        assert_eq!(availability.end_fault(ms(805)), None);
    }

    #[test]
    fn a_partition_that_does_not_come_back_counts() {
        let mut availability = Availability::new(2);
        availability.fault(ms(100));
        availability.acknowledged(0, ms(110));
        assert_eq!(availability.end_fault(ms(5_110)), Some(ms(5_010)));
        assert_eq!(availability.outages(), [ms(5_010)]);
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        let sorted = [ms(1), ms(2), ms(3), ms(4)];
        assert_eq!(percentile(&sorted, 0.5), Some(ms(2)));
        assert_eq!(percentile(&sorted, 0.99), Some(ms(4)));
        assert_eq!(percentile(&[], 0.5), None);
    }
}
