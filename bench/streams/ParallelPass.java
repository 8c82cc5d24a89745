import io.confluent.parallelconsumer.ParallelConsumerOptions;
import io.confluent.parallelconsumer.ParallelConsumerOptions.CommitMode;
import io.confluent.parallelconsumer.ParallelConsumerOptions.ProcessingOrder;
import io.confluent.parallelconsumer.ParallelStreamProcessor;

import java.util.List;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;

import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/**
 * A slow step as a user of Confluent's Parallel Consumer writes it: waits for
 * each record, many keys side by side, one key in order, and passes it on. The
 * peer that PipeDoc's concurrency by key is measured against.
 *
 * <p>Arguments: bootstrap servers, group, input topic, output topic, records at
 * work at once, milliseconds to wait. Runs until it is ended.
 */
public final class ParallelPass {
    private ParallelPass() {
    }

    public static void main(String[] arguments) throws InterruptedException {
        if (arguments.length != 6) {
            System.err.println("usage: ParallelPass BOOTSTRAP GROUP INPUT OUTPUT CONCURRENCY WAIT_MS");
            System.exit(2);
        }
        String output = arguments[3];
        int concurrency = Integer.parseInt(arguments[4]);
        long wait = Long.parseLong(arguments[5]);

        Properties reading = new Properties();
        reading.put("bootstrap.servers", arguments[0]);
        reading.put("group.id", arguments[1]);
        reading.put("auto.offset.reset", "earliest");
        reading.put("enable.auto.commit", "false");
        reading.put("isolation.level", "read_committed");
        Properties writing = new Properties();
        writing.put("bootstrap.servers", arguments[0]);
        writing.put("acks", "all");

        var options = ParallelConsumerOptions.<byte[], byte[]>builder()
                .ordering(ProcessingOrder.KEY)
                .maxConcurrency(concurrency)
                .commitMode(CommitMode.PERIODIC_CONSUMER_ASYNCHRONOUS)
                .consumer(new KafkaConsumer<>(reading, new ByteArrayDeserializer(), new ByteArrayDeserializer()))
                .producer(new KafkaProducer<>(writing, new ByteArraySerializer(), new ByteArraySerializer()))
                .build();
        ParallelStreamProcessor<byte[], byte[]> processor = ParallelStreamProcessor.createEosStreamProcessor(options);
        processor.subscribe(List.of(arguments[2]));
        processor.pollAndProduce(context -> {
            ConsumerRecord<byte[], byte[]> record = context.getSingleConsumerRecord();
            try {
                Thread.sleep(wait);
            } catch (InterruptedException stopped) {
                throw new IllegalStateException(stopped);
            }
            return new ProducerRecord<>(output, null, record.key(), record.value(), record.headers());
        });
        new CountDownLatch(1).await();
    }
}
