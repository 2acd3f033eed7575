//! What the simulated disk says of crashes, faults and lies is what it does.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

const SIZE: usize = 64 << 10;

fn chunk(start: u64, len: usize, byte: u8) -> VerifiedChunk {
    VerifiedChunk::copy_of(ByteRange::new(start, len as u64), &vec![byte; len]).unwrap()
}

fn read(disk: &SimDisk, range: ByteRange) -> Result<Vec<u8>, TargetError> {
    let mut buffer = vec![0xee; history::to_index(range.len())];
    disk.read(range, &mut buffer).map(|()| buffer)
}

fn device() -> SimDisk {
    SimDisk::device(vec![1; SIZE], 512)
}

fn whole() -> ByteRange {
    ByteRange::new(0, SIZE as u64)
}

#[test]
fn what_is_written_is_live_at_once_and_durable_after_a_sync() {
    let disk = device();
    disk.write(&chunk(512, 1000, 2)).unwrap();
    let mut expected = vec![1; SIZE];
    expected[512..1512].fill(2);
    // Padded to whole sectors.
    expected[1512..1536].fill(0);
    assert_eq!(read(&disk, whole()).unwrap(), expected);
    assert_eq!((&*disk.contents(), &*disk.durable()), (&expected, &vec![1; SIZE]));
    disk.sync().unwrap();
    assert_eq!(*disk.durable(), expected);
}

#[test]
fn a_crash_of_seed_0_has_none_and_of_seed_1_all_of_what_was_not_synced() {
    let disk = device().named("disk-1");
    disk.write(&chunk(0, SIZE, 2)).unwrap();
    disk.sync().unwrap();
    disk.write(&chunk(0, 4096, 3)).unwrap();
    disk.write_zeroes(ByteRange::new(512, 512)).unwrap();
    let (none, all) = (disk.crash(0), disk.crash(1));
    assert_eq!(*none.contents(), vec![2; SIZE]);
    assert_eq!(all.contents(), disk.contents());
    for crashed in [none, all] {
        assert_eq!(crashed.durable(), crashed.contents());
        assert_eq!((crashed.operations(), crashed.identity().as_deref()), (0, Some("disk-1")));
    }
}

#[test]
fn a_torn_write_is_there_sector_by_sector_and_not_only_from_one_end() {
    for sector in [512, 4096] {
        let disk = SimDisk::device(vec![1; SIZE], u32::try_from(sector).unwrap());
        disk.write(&chunk(0, SIZE, 2)).unwrap();
        let moment = disk.history().after(1);
        let (mut torn, mut borders) = (0, 0);
        for rng_seed in 0..64 {
            let found = moment.crash(rng_seed).contents();
            assert_eq!(found, moment.crash(rng_seed).contents(), "{rng_seed} gives the same twice");
            let sectors: Vec<_> = found.chunks(sector).collect();
            assert!(sectors.iter().all(|sector| sector.iter().all(|byte| *byte == sector[0])), "{rng_seed}");
            let changes = sectors.windows(2).filter(|pair| pair[0] != pair[1]).count();
            torn += usize::from(changes > 0);
            borders = borders.max(changes);
        }
        assert!(torn > 10 && borders > 2, "{torn} of 64 are torn, at {borders} borders at most");
    }
}

#[test]
fn writes_that_overlap_arrive_in_any_order() {
    let disk = device();
    disk.write(&chunk(0, 512, 2)).unwrap();
    disk.write(&chunk(0, 512, 3)).unwrap();
    let moment = disk.history().after(2);
    let mut found: Vec<_> = (0..64).map(|rng_seed| moment.crash(rng_seed).contents()[0]).collect();
    found.sort_unstable();
    found.dedup();
    assert_eq!(found, [1, 2, 3]);
    // A half has each of them, a quarter the first alone; with the other order it is also left where both arrive.
    let first = (2..1002).filter(|rng_seed| moment.crash(*rng_seed).contents()[0] == 2).count();
    assert!((320..430).contains(&first), "{first} of 1000");
}

#[test]
fn a_failing_sync_makes_nothing_durable_and_loses_a_part_for_good() {
    let (mut lost, mut still_read) = (0, 0);
    for rng_seed in 0..32 {
        let disk = device();
        disk.set_rng_seed(rng_seed);
        for at in 0..8 {
            disk.write(&chunk(at * 4096, 4096, 2)).unwrap();
        }
        disk.fail(9, SimFault::Eio);
        let error = disk.sync().unwrap_err();
        assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "Input/output error (os error 5)");
        assert_eq!(*disk.durable(), vec![1; SIZE]);
        disk.sync().unwrap();
        let durable = disk.durable();
        assert_eq!(disk.crash(1).contents(), durable);
        lost += usize::from(durable[..8 * 4096].contains(&1));
        still_read += usize::from(durable != disk.contents());
        // Written again, it is there.
        disk.write(&chunk(0, 8 * 4096, 2)).unwrap();
        disk.sync().unwrap();
        assert_eq!((disk.durable(), disk.durable()[0]), (disk.contents(), 2));
    }
    assert!(lost > 24, "{lost} of 32 have lost something");
    assert!(still_read > 8 && still_read < lost, "{still_read} of 32 read as if nothing was lost");
}

#[test]
fn every_fault_fails_the_operation_that_it_was_ordered_for_and_no_other() {
    let codes = [Some(5), Some(28), Some(4), Some(11), None];
    for (fault, code) in SimFault::ALL.into_iter().zip(codes) {
        let disk = device();
        for number in [2, 4, 6] {
            disk.fail(number, fault);
        }
        let range = ByteRange::new(0, 4096);
        disk.write(&chunk(0, 4096, 2)).unwrap();
        let errors = [
            disk.write(&chunk(0, 4096, 3)).unwrap_err(),
            disk.write_zeroes(ByteRange::new(8192, 512)).and_then(|()| disk.write_zeroes(range)).unwrap_err(),
            disk.sync().and_then(|()| read(&disk, range).map(drop)).unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.range(), Some(range));
            let source = std::error::Error::source(&error).unwrap().downcast_ref::<std::io::Error>().unwrap();
            assert_eq!(source.raw_os_error(), code);
        }
        let found = disk.contents();
        let half = if fault == SimFault::Short { 0 } else { 2 };
        assert_eq!((found[0], found[2047], found[2048]), (half, half, 2), "{fault:?}");
    }
}

#[test]
fn a_short_write_has_whole_sectors_of_what_was_to_be_written() {
    let disk = device();
    disk.fail(1, SimFault::Short);
    disk.write(&chunk(512, 5 * 512, 2)).unwrap_err();
    let mut expected = vec![1; SIZE];
    expected[512..512 + 2 * 512].fill(2);
    assert_eq!(*disk.contents(), expected);
}

#[test]
fn each_lie_is_told_once_and_is_what_it_is_called() {
    let lied = |lie| {
        let disk = device();
        disk.lie(1, lie);
        disk.write(&chunk(512, 1024, 2)).unwrap();
        disk.contents().to_vec()
    };
    let mut expected = vec![1; SIZE];
    assert_eq!(lied(SimLie::Dropped), expected);
    expected[512..1536].fill(2);
    assert_eq!(lied(SimLie::Stale), expected, "a write is not read");
    let bits = lied(SimLie::Flipped).iter().zip(&expected).map(|(a, b)| (a ^ b).count_ones()).sum::<u32>();
    assert_eq!(bits, 1);
    expected[512..1536].fill(0);
    assert_eq!(lied(SimLie::Zeroed), expected);
    expected[512..1024].fill(1);
    expected[1024..2048].fill(2);
    assert_eq!(lied(SimLie::Shifted), expected);

    let disk = device();
    disk.lie(2, SimLie::Stale);
    disk.write(&chunk(0, 512, 2)).unwrap();
    let range = ByteRange::new(0, 1024);
    let (stale, right) = (read(&disk, range).unwrap(), read(&disk, range).unwrap());
    assert_eq!((stale[0], right[0], right[512]), (1, 2, 1));
}

#[test]
fn a_dropped_write_is_in_no_crash_either() {
    let disk = device();
    disk.lie(1, SimLie::Dropped);
    disk.write(&chunk(0, 4096, 2)).unwrap();
    disk.sync().unwrap();
    assert!((0..16).all(|rng_seed| *disk.crash(rng_seed).contents() == vec![1; SIZE]));
}

#[test]
fn a_replaced_file_is_the_old_one_until_the_exchange_and_only_settled_it_is_surely_the_new() {
    let disk = SimDisk::file_replaced(vec![1; 4096], SIZE as u64);
    let mut exchange = disk.exchange().unwrap();
    assert!(disk.is_new() && !exchange.has_its_place());
    disk.write(&chunk(0, SIZE, 2)).unwrap();
    disk.sync().unwrap();
    assert_eq!(*disk.contents(), vec![1; 4096]);
    exchange.publish().unwrap();
    assert!(exchange.has_its_place());
    assert_eq!((&*disk.contents(), &*disk.durable()), (&vec![2; SIZE], &vec![1; 4096]));
    let moment = disk.history().after(3);
    assert_eq!(moment.unsynced(), 1);
    let new = (2..34).filter(|rng_seed| *moment.crash(*rng_seed).contents() == vec![2; SIZE]).count();
    assert!((1..32).contains(&new), "{new} of 32 crashes have the new file");
    exchange.settle().unwrap();
    assert!((0..16).all(|rng_seed| *disk.crash(rng_seed).contents() == vec![2; SIZE]));
    // A second run replaces the file that the first one made.
    drop(exchange);
    assert!(disk.exchange().is_some());
    assert_eq!((&*disk.contents(), read(&disk, whole()).unwrap()), (&vec![2; SIZE], vec![0; SIZE]));
    assert_eq!(*disk.durable(), vec![2; SIZE]);
}

#[test]
fn a_publish_that_fails_leaves_the_old_file_and_a_short_one_the_new() {
    for fault in SimFault::ALL {
        let disk = SimDisk::file_replaced(vec![1; 4096], 8192);
        let mut exchange = disk.exchange().unwrap();
        disk.fail(1, fault);
        exchange.publish().unwrap_err();
        assert_eq!(exchange.has_its_place(), fault == SimFault::Short);
        assert_eq!(disk.contents().len() == 8192, fault == SimFault::Short);
    }
}

#[test]
fn a_new_file_that_is_preserved_stays_and_the_old_one_keeps_its_place() {
    let disk = SimDisk::file_replaced(vec![1; 4096], 8192);
    let mut exchange = disk.exchange().unwrap();
    disk.write(&chunk(0, 512, 2)).unwrap();
    disk.fail(2, SimFault::Eio);
    exchange.preserve("journal").unwrap_err();
    assert_eq!(disk.preserved(), None);
    assert!(exchange.preserve("journal").unwrap().is_some());
    assert_eq!(disk.preserved().unwrap()[..513], [vec![2; 512], vec![0]].concat());
    assert_eq!((disk.contents(), exchange.has_its_place()), (vec![1; 4096].into(), false));
}

#[test]
fn a_bad_place_spoils_every_write_that_touches_it_and_no_other() {
    let disk = device();
    disk.lie_always(ByteRange::new(1024, 512), SimLie::Dropped);
    for number in 1..=3 {
        disk.write(&chunk(512, 1024, 2)).unwrap();
        disk.write(&chunk(0, 1024, number)).unwrap();
        assert_eq!(disk.contents()[..2048], [vec![number; 1024], vec![1; 1024]].concat());
    }
    assert_eq!(read(&disk, ByteRange::new(1024, 512)).unwrap(), vec![1; 512], "a read is none");
}

#[test]
fn a_file_proves_the_holes_that_were_never_written_or_were_zeroed() {
    let mut contents = vec![0; SIZE];
    contents[8192] = 1;
    let disk = SimDisk::file_in_place(contents);
    assert_eq!(disk.next_data(0).unwrap(), Some(ByteRange::new(8192, 4096)));
    assert_eq!(disk.next_data(9000).unwrap(), Some(ByteRange::between(9000, 12288)));
    assert_eq!(disk.next_data(12288).unwrap(), None);
    disk.write(&chunk(20_000, 5000, 0)).unwrap();
    assert_eq!(disk.next_data(12288).unwrap(), Some(ByteRange::between(16384, 28672)));
    disk.write_zeroes(ByteRange::between(8192, 25_000)).unwrap();
    assert_eq!(disk.next_data(0).unwrap(), Some(ByteRange::between(24576, 28672)), "a part is no hole");
    let device = device();
    assert_eq!(device.next_data(512).unwrap(), Some(ByteRange::between(512, SIZE as u64)));
    assert_eq!(device.next_data(SIZE as u64).unwrap(), None);
}

#[test]
fn a_file_grows_when_it_is_told_to() {
    let disk = SimDisk::file_in_place(vec![1; 4096]).grown_to(8192);
    assert_eq!((disk.size(), disk.contents().len()), (8192, 4096));
    read(&disk, ByteRange::new(4096, 512)).unwrap_err();
    disk.take_size().unwrap();
    disk.take_size().unwrap();
    let operations = disk.operations();
    assert_eq!((operations, disk.contents().len(), disk.durable().len()), (2, 8192, 4096), "grown once");
    disk.sync().unwrap();
    assert_eq!(disk.durable()[4096..], [0; 4096]);
}

#[test]
fn the_hook_sees_the_disk_before_and_after_each_operation() {
    let (disk, seen) = (device(), Arc::new(Mutex::new(Vec::new())));
    let (watched, noted) = (disk.clone(), Arc::clone(&seen));
    disk.on_operation(move |operation, when| {
        noted.lock().unwrap().push((operation.number, when, watched.contents()[0]));
    });
    disk.write(&chunk(0, 512, 2)).unwrap();
    disk.fail(2, SimFault::Eio);
    disk.write(&chunk(0, 512, 3)).unwrap_err();
    use SimWhen::{After, Before};
    let seen = seen.lock().unwrap();
    assert_eq!(*seen, [(1, Before, 1), (1, After, 2), (2, Before, 2), (2, After, 2)]);
}

#[test]
fn operations_of_several_threads_come_one_after_the_other_and_each_has_its_number() {
    let (disk, inside) = (device(), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&inside);
    disk.on_operation(move |_, when| match when {
        SimWhen::Before => assert_eq!(counted.fetch_add(1, Ordering::SeqCst), 0),
        SimWhen::After => assert_eq!(counted.fetch_sub(1, Ordering::SeqCst), 1),
    });
    std::thread::scope(|scope| {
        for at in 0..4 {
            let disk = disk.clone();
            scope.spawn(move || (0..50).for_each(|_| disk.write(&chunk(at * 4096, 4096, 2)).unwrap()));
        }
    });
    assert!(disk.log().iter().map(|operation| operation.number).eq(1..=200));
}

#[test]
fn a_slow_operation_takes_its_time() {
    let disk = device();
    disk.slow(1, Duration::from_millis(30));
    let started = std::time::Instant::now();
    disk.sync().unwrap();
    assert!(started.elapsed() >= Duration::from_millis(30));
}
