//! Which partition a record goes to: the function of Kafka's Java client.

/// `org.apache.kafka.common.utils.Utils.murmur2`, seed `0x9747b28c`.
#[must_use]
pub fn murmur2(data: &[u8]) -> i32 {
    const M: u32 = 0x5bd1_e995;
    const R: u32 = 24;
    let mut hash = 0x9747_b28c_u32 ^ data.len() as u32;
    let mut words = data.chunks_exact(4);
    for word in words.by_ref() {
        let mut k = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(M);
        k = (k ^ (k >> R)).wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ k;
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        for (shift, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * shift);
        }
        hash = hash.wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    (hash ^ (hash >> 15)) as i32
}

/// Java's `Utils.toPositive`: clears the sign bit.
#[must_use]
pub fn to_positive(number: i32) -> i32 {
    number & 0x7fff_ffff
}

/// Partition of a keyed record: `toPositive(murmur2(key)) mod partitions`, as
/// Kafka's default partitioner and librdkafka's `murmur2_random` compute it.
/// `partitions` must be above 0; with less the answer is 0.
#[must_use]
pub fn for_key(key: &[u8], partitions: i32) -> i32 {
    to_positive(murmur2(key)) % partitions.max(1)
}

/// Partition of a record without key that is piped from `source_partition`:
/// the hash of its number in ASCII decimal, so that order holds across topics
/// with different numbers of partitions.
#[must_use]
pub fn for_source(source_partition: i32, partitions: i32) -> i32 {
    for_key(source_partition.to_string().as_bytes(), partitions)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From `org.apache.kafka.common.utils.UtilsTest#testMurmur2`.
    #[test]
    fn murmur2_agrees_with_kafkas_java_client() {
        let vectors: [(&[u8], i32); 7] = [
            (b"21", -973_932_308),
            (b"foobar", -790_332_482),
            (b"a-little-bit-long-string", -985_981_536),
            (b"a-little-bit-longer-string", -1_486_304_829),
            (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            (b"abc", 479_470_107),
            (b"", 275_646_681),
        ];
        for (data, hash) in vectors {
            assert_eq!(murmur2(data), hash, "{}", String::from_utf8_lossy(data));
        }
    }
}
